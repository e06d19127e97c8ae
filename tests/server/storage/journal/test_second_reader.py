"""docs/journal-format.md is enough to read a journal: a second reader agrees with ours."""

from __future__ import annotations

import random

import pytest
from stepwell_core.errors import JournalInvalid
from stepwell_server.storage.journal import Identity

from tests.server.storage import second_reader
from tests.server.storage.journal.journals import (
    IDENTITY,
    append,
    kept,
    opened,
    segment_paths,
)
from tests.server.storage.second_reader import Refused

OTHER = Identity("digits", "layout-hash", "incarnation-2")


def write(folder, rng):
    """Some segments: synced or not, recycled or not, of one history or two."""
    with opened(folder, rng.randrange(3)) as journal:
        for _ in range(rng.randint(1, 12)):
            append(journal, rng.choice((0, 10, 5000, 66_000)))
            match rng.randrange(8):
                case 0 | 1:
                    journal.sync()
                case 2:
                    journal.rotate()
                case 3:
                    journal.rotate(rng.choice((IDENTITY, OTHER)))
                case 4:
                    journal.remove_before(rng.randint(0, journal.next_number))
        if rng.random() < 0.5:
            journal.rotate(IDENTITY)


def damage(folder, rng):
    """Flip a bit or cut a file, mostly near its entries."""
    path = rng.choice(segment_paths(folder))
    size = path.stat().st_size
    if rng.random() < 0.3:
        with open(path, "r+b") as file:
            file.truncate(rng.randrange(size))
        return
    with open(path, "r+b") as file:
        place = rng.randrange(0, size, 4096) + rng.randrange(100)
        file.seek(place)
        byte = file.read(1)
        if byte:
            file.seek(place)
            file.write(bytes([byte[0] ^ 1 << rng.randrange(8)]))


def read_by(reader, folder, first, identity):
    """What a reader reads, or that it refuses."""
    try:
        if reader is kept:
            return kept(folder, first, identity)
        return second_reader.read(
            folder, identity.model, identity.layout, identity.incarnation, first
        )
    except (JournalInvalid, Refused):
        return "refused"


@pytest.mark.parametrize("seed", range(50))
def test_both_readers_agree_on_whole_and_damaged_journals(tmp_path, seed):
    """On what is read, from any number on, of either history; and on what is refused."""
    rng = random.Random(seed)
    write(tmp_path / "journal", rng)

    for is_damaged in (False, True, True):
        if is_damaged:
            damage(tmp_path / "journal", rng)
        for first in range(12):
            for identity in (IDENTITY, OTHER, Identity("digits", "other-layout", "incarnation-1")):
                arguments = tmp_path / "journal", first, identity
                assert read_by(kept, *arguments) == read_by(second_reader.read, *arguments)
