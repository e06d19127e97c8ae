"""After any power loss every record that was synced is there, and what is read is a prefix.

A journey is a list of steps on a disk that forgets what was not synced, checked against a list of
what was appended. `SEEDED` are bugs that such journeys must find.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from stepwell_core.errors import JournalInvalid, StepwellError
from stepwell_server.storage import disk
from stepwell_server.storage.journal import Journal, Record, read, segment, sync_all
from stepwell_server.storage.journal import format as journal_format
from stepwell_server.storage.journal.reader import Reading
from stepwell_server.storage.journal.removal import OldSegments
from stepwell_server.storage.journal.segment import Segment

from tests.server.storage.forgetful_disk import Folder, ForgetfulDisk
from tests.server.storage.journal.journals import IDENTITY, Content, contents, noise

STEPS = ("append", "append", "append", "append", "sync", "rotate", "remove", "crash", "reopen")
SIZES = (0, 100, 4096, 9000, 66_000)


class Journey:
    """One model's life on a disk that forgets."""

    def __init__(self, root: Path, rng: random.Random, durability: str) -> None:
        self.double = ForgetfulDisk(root)
        disk.system = self.double
        self.folder = root / "journal"
        self.rng = rng
        self.durability = durability
        self.appended: list[Content] = []
        self.durable = 0  # so many records were on the disk when a call returned
        self.needed = 0  # a checkpoint has all before
        self.journal = self.opened()

    def opened(self) -> Journal:
        return Journal(
            self.folder,
            IDENTITY,
            len(self.appended),
            self.durability,  # type: ignore[arg-type]
            1 << 20,
            sync_delay_s=1000,
        )

    def append(self) -> None:
        number = len(self.appended)
        content = number, {"number": number}, noise(self.rng.choice(SIZES), number)
        self.appended.append(content)  # it may be there even if the power fails before the return
        self.journal.append(content[1], [memoryview(content[2])])

    def sync(self) -> None:
        self.journal.sync()
        self.durable = len(self.appended)

    def rotate(self) -> None:
        self.journal.rotate()
        self.durable = len(self.appended)

    def remove(self) -> None:
        self.needed = self.rng.randint(self.needed, self.durable)
        self.journal.remove_before(self.needed)

    def reopen(self) -> None:
        """A clean stop and a start."""
        self.journal.close()
        self.durable = len(self.appended)
        self.check()
        self.journal = self.opened()

    def crash(self) -> None:
        """A power loss, now or in the middle of what would have come next, and a start."""
        if self.rng.random() < 0.7:
            self.double.lose_power_after(self.rng.randrange(12))
            with contextlib.suppress(OSError, StepwellError):
                for _ in range(10):
                    getattr(
                        self, self.rng.choice(("append", "append", "sync", "rotate", "remove"))
                    )()
        self.double.crash(self.rng)
        with contextlib.suppress(StepwellError):
            self.journal.close()  # its descriptors are dead
        self.check()
        self.journal = self.opened()

    def check(self) -> None:
        """Read what is there, as recovery does, and go on from it."""
        sync_all(self.folder)
        reading = read(self.folder, IDENTITY, self.needed)
        found = contents(reading)
        assert found == self.appended[self.needed : self.needed + len(found)]
        assert reading.next_number == self.needed + len(found)
        assert reading.next_number >= self.durable, "what was durable is gone"
        del self.appended[reading.next_number :]
        self.durable = reading.next_number


def travel(root: Path, steps: list[str], seed: int) -> None:
    """Go on a journey; fails with AssertionError or JournalInvalid if something is lost."""
    rng = random.Random(seed)
    before = disk.system
    journey = Journey(root, rng, rng.choice(("always", "everysec")))
    try:
        for step in steps:
            getattr(journey, step)()
        journey.crash()
    finally:
        with contextlib.suppress(OSError, StepwellError):
            journey.journal.close()
        disk.system = before


def steps_of(seed: int) -> list[str]:
    """Some steps, the same for the same seed."""
    return random.Random(seed).choices(STEPS, k=25)


@hypothesis_settings(max_examples=60)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=30), seed=st.integers(0, 1 << 32))
def test_what_was_synced_is_there_after_any_power_loss(tmp_path_factory, steps, seed):
    """Bit for bit; and what is read is a prefix of what was appended, whatever was cut off."""
    travel(tmp_path_factory.mktemp("disk"), steps, seed)


@pytest.mark.parametrize("seed", range(40))
def test_journeys_of_fixed_seeds(tmp_path, seed):
    """Those that the seeded bugs are looked for with."""
    travel(tmp_path, steps_of(seed), seed)


def sync_left_out(monkeypatch):
    """`sync` returns, and nothing was synced."""
    monkeypatch.setattr(Segment, "sync", lambda self: None)


def a_segment_before_its_name_is_durable(monkeypatch):
    """A new segment is written to though its name may be lost."""
    monkeypatch.setattr(
        segment,
        "disk",
        SimpleNamespace(
            temporary_beside=disk.temporary_beside,
            write_whole=disk.write_whole,
            sync_folder=lambda path: None,
            system=ByName(),
        ),
    )


def a_name_before_the_header(monkeypatch):
    """A segment is renamed before its header is on the disk."""

    def sync_folders_alone(self, descriptor):
        with self._lock:
            if isinstance(node := self._open.get(descriptor), Folder):
                node.sync()

    monkeypatch.setattr(ForgetfulDisk, "sync", sync_folders_alone)


def a_segment_ends_unsynced(monkeypatch):
    """The next one says that all before it is on the disk, and it is not."""
    original = Journal.rotate

    def rotate(self):
        self._durable = self._next_number
        return original(self)

    monkeypatch.setattr(Journal, "rotate", rotate)


def a_segment_too_many_goes(monkeypatch):
    """One with a record that is needed."""
    original = OldSegments.remove_before
    monkeypatch.setattr(
        OldSegments, "remove_before", lambda self, number: original(self, number + 1)
    )


def the_head_is_trusted(monkeypatch):
    """A record counts when its head is there, and its payload is not looked at."""

    def record(self, file, offset, head):
        packed_map, payload = file.record_at(offset, head)
        return Record(head.number, journal_format.unpack_map(packed_map), payload)

    monkeypatch.setattr(Reading, "_record", record)


def a_record_says_too_much(monkeypatch):
    """It says that all before it is on the disk, and it is not."""
    original = Segment.append
    monkeypatch.setattr(
        Segment,
        "append",
        lambda self, number, durable, *rest: original(self, number, number, *rest),
    )


class ByName:
    """`disk.system` as it is when it is asked."""

    def __getattr__(self, name):
        return getattr(disk.system, name)


SEEDED = [
    sync_left_out,
    a_segment_before_its_name_is_durable,
    a_name_before_the_header,
    the_head_is_trusted,
    a_record_says_too_much,
    a_segment_ends_unsynced,
    a_segment_too_many_goes,
]


@pytest.mark.parametrize("bug", SEEDED, ids=lambda bug: bug.__name__)
def test_a_seeded_bug_is_found(tmp_path_factory, monkeypatch, bug):
    """By one of the first journeys that pass without it."""
    bug(monkeypatch)

    for seed in range(40):
        try:
            travel(tmp_path_factory.mktemp("disk"), steps_of(seed), seed)
        except (AssertionError, JournalInvalid):
            return
    pytest.fail(f"no journey found that {bug.__doc__}")
