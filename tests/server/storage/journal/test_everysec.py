"""Under `everysec` a thread syncs; whoever appends waits only when it is late."""

import errno
import threading

import pytest
from stepwell_core.errors import ModelReadOnly
from stepwell_server.storage import disk

from tests.server.storage.journal.journals import append, kept, opened

DEADLINE_S = 30


class WatchedDisk(disk.System):
    """A disk whose `sync_content` tells that it began, and ends when it may."""

    def __init__(self):
        self.began = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.error = None
        self.may_end.set()
        self.threads = []

    def sync_content(self, descriptor):
        self.threads.append(threading.current_thread())
        self.began.release()
        assert self.may_end.wait(DEADLINE_S)
        if self.error is not None:
            raise self.error
        super().sync_content(descriptor)


@pytest.fixture
def watched(monkeypatch):
    """The disk of the test."""
    double = WatchedDisk()
    monkeypatch.setattr(disk, "system", double)
    return double


def test_what_is_appended_is_synced_by_itself(tmp_path, watched):
    """On another thread, again after each append, and not without one."""
    with opened(tmp_path / "journal", durability="everysec", sync_delay_s=0.01) as journal:
        for _ in range(3):
            append(journal)
            assert watched.began.acquire(timeout=DEADLINE_S)
        journal.close()

    assert threading.current_thread() not in watched.threads[:3]
    assert len(watched.threads) <= 4  # the last by `close`, if it came before the thread


def test_appends_within_a_second_share_a_sync(tmp_path, watched):
    """`close` makes it here, since the second is not over."""
    with opened(tmp_path / "journal", durability="everysec", sync_delay_s=1000) as journal:
        for _ in range(10):
            append(journal)
        journal.close()

    assert len(watched.threads) == 1


def test_an_append_does_not_wait_for_a_sync_under_way(tmp_path, watched):
    """Unless that is late."""
    watched.may_end.clear()
    with opened(tmp_path / "journal", durability="everysec", sync_delay_s=1000) as journal:
        append(journal)
        syncing = threading.Thread(target=journal.sync)
        syncing.start()
        assert watched.began.acquire(timeout=DEADLINE_S)

        expected = [append(journal)[0] for _ in range(5)]

        assert not journal.is_late
        watched.may_end.set()
        syncing.join()
        assert expected == [1, 2, 3, 4, 5]


def test_an_append_waits_when_the_disk_is_late(tmp_path, watched):
    """No more than two seconds are ever at stake."""
    watched.may_end.clear()
    with opened(tmp_path / "journal", durability="everysec", sync_delay_s=0) as journal:
        append(journal)
        assert watched.began.acquire(timeout=DEADLINE_S)  # the thread is stuck in its sync
        assert journal.is_late
        appending = threading.Thread(target=append, args=(journal,))
        appending.start()
        appending.join(0.05)
        assert appending.is_alive()
        assert journal.next_number == 1

        watched.may_end.set()
        appending.join()

        assert journal.next_number == 2


def test_always_is_never_late(tmp_path):
    """Whoever appends syncs, and has no use for another wait."""
    with opened(tmp_path / "journal", durability="always", sync_delay_s=0) as journal:
        append(journal)

        assert not journal.is_late


def test_a_failure_on_the_thread_ends_all_writing(tmp_path, watched):
    """It is told at once, and by every later call."""
    told = threading.Event()
    watched.error = OSError(errno.EIO, "Input/output error")
    with opened(
        tmp_path / "journal",
        durability="everysec",
        sync_delay_s=0.01,
        on_failure=lambda error: told.set(),
    ) as journal:
        append(journal)
        assert told.wait(DEADLINE_S)

        with pytest.raises(ModelReadOnly, match="synced"):
            append(journal)
        with pytest.raises(ModelReadOnly):
            journal.sync()
        journal.close()

    assert len(watched.threads) == 1


def test_no_thread_is_left(tmp_path):
    """Neither by `close` nor under `always`."""
    before = set(threading.enumerate())
    with opened(tmp_path / "a", durability="everysec"), opened(tmp_path / "b"):
        assert len(set(threading.enumerate()) - before) == 1

    assert set(threading.enumerate()) == before


def test_segments_change_while_the_thread_syncs(tmp_path, watched):
    """`rotate` waits for a sync under way, and nothing is synced that was closed."""
    with opened(tmp_path / "journal", durability="everysec", sync_delay_s=0) as journal:
        expected = []
        for number in range(60):
            expected.append(append(journal, 100))
            if number % 7 == 0:
                journal.rotate()
                journal.remove_before(journal.next_number - 20)

        assert journal.failure is None
    assert kept(tmp_path / "journal", 45) == expected[45:]
