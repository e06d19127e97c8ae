"""A `stepwell` with something wrong on purpose: seeded bugs, and a machine that loses its power.

    FAULTS_BUG=lost_apply python -m tests.faults.server_program serve ...

`FAULTS_BUG` names one of `BUGS`. `FAULTS_POWER=7` puts all that the server writes on a disk that
forgets what was not synced; at SIGUSR1 the power fails: what a disk may have kept (drawn by that
seed) is what is there afterwards, and the process is gone. `FAULTS_BOOT` names the run of the
kernel, which is another one after that.
"""

from __future__ import annotations

import os
import signal

if os.environ.get("FAULTS_POWER"):  # before libraries start threads: they inherit that
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stepwell_core.engine import Engine
from stepwell_core.ledger import Ledger
from stepwell_core.store import Store, Version
from stepwell_server.storage import disk
from stepwell_server.storage.journal import Journal

BUGS: dict[str, Callable[[], None]] = {}


def bug(patch: Callable[[], None]) -> Callable[[], None]:
    """Note what makes a bug, under its name."""
    BUGS[patch.__name__] = patch
    return patch


def _every(count: int) -> Callable[[], bool]:
    """Return what says True each so many calls."""
    calls = 0

    def is_time() -> bool:
        nonlocal calls
        calls += 1
        return calls % count == 0

    return is_time


@bug
def double_apply() -> None:
    """Some pushes change the parameters twice, and make one version."""
    write, is_time = Engine._write, _every(10)

    def doubled(self: Engine, gradient: Any, scalars: Any, version: int) -> None:
        write(self, gradient, scalars, version)
        if is_time():
            write(self, gradient, scalars, version)

    Engine._write = doubled  # type: ignore[method-assign]


@bug
def repetition_applied() -> None:
    """A repeated push is admitted as if it were the next one."""
    check = Ledger.check
    from stepwell_server.pushes import Pushes

    def forgetful(self: Ledger, worker: str, epoch: int, sequence: int, *rest: Any) -> Any:
        session = self.find(worker, epoch)
        is_last = sequence == session.last_sequence
        return None if is_last else check(self, worker, epoch, sequence, *rest)

    Ledger.check = forgetful  # type: ignore[method-assign]
    Pushes.is_known = lambda self, key: False  # type: ignore[method-assign]


@bug
def lost_apply() -> None:
    """Some pushes are acknowledged with a version and change nothing."""
    write, is_time = Engine._write, _every(10)

    def lossy(self: Engine, gradient: Any, scalars: Any, version: int) -> None:
        if is_time():
            claim = self.store.claim()
            for dtype, array in claim.source.items():
                claim.target[dtype][...] = array
            self.store.publish(version)
        else:
            write(self, gradient, scalars, version)

    Engine._write = lossy  # type: ignore[method-assign]


def _show(choose: Callable[[Version, Version], Version]) -> None:
    """Have readers see what `choose` makes of copies of the current version and the one before."""
    hold, release = Store.hold, Store.release
    last: dict[int, Version] = {}
    shown: dict[int, Version] = {}  # kept, so that no other one gets its id

    def holding(self: Store, **options: Any) -> Version | None:
        version = hold(self, **options)
        if version is None or options:  # a checkpoint's
            return version
        arenas = {dtype: array.copy() for dtype, array in version.arenas.items()}
        now = Version(version.number, arenas, version.move)
        release(self, version)
        before = last.get(id(self), now)
        last[id(self)] = now
        seen = choose(before, now)
        shown[id(seen)] = seen
        return seen

    def releasing(self: Store, version: Version) -> None:
        if id(version) not in shown:
            release(self, version)

    Store.hold = holding  # type: ignore[method-assign]
    Store.release = releasing  # type: ignore[method-assign]


@bug
def torn_pull() -> None:
    """A pull has the first half of its bytes from an older version."""

    def choose(before: Version, now: Version) -> Version:
        mixed = {dtype: array.copy() for dtype, array in now.arenas.items()}
        for dtype, array in mixed.items():
            array[: array.size // 2] = before.arenas[dtype][: array.size // 2]
        return Version(now.number, mixed, now.move)

    _show(choose)


@bug
def stale_read() -> None:
    """A pull sometimes gets an older version, whole and under its number."""
    is_time = _every(5)
    _show(lambda before, now: before if is_time() else now)


@bug
def answer_before_fsync() -> None:
    """A push is acknowledged when its record was written, and not synced."""
    Journal.sync = lambda self: None  # type: ignore[method-assign]


def _prepare_power_loss(seed: int) -> None:
    """Have SIGUSR1 end the process as a power loss does."""
    from tests.server.storage.forgetful_disk import ForgetfulDisk

    root = Path(sys.argv[sys.argv.index("--data-dir") + 1])
    root.mkdir(parents=True, exist_ok=True)
    forgetful = ForgetfulDisk(root)
    disk.system = forgetful

    def wait() -> None:
        signal.sigwait({signal.SIGUSR1})
        forgetful.lose_power_after(0)
        forgetful.crash(random.Random(seed))
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Be the server."""
    from stepwell_server.cli import main as run

    if name := os.environ.get("FAULTS_BUG"):
        BUGS[name]()
    if boot := os.environ.get("FAULTS_BOOT"):
        for name, module in sys.modules.items():
            if name.startswith("stepwell_server.storage.journal") and hasattr(module, "boot_id"):
                module.boot_id = lambda: boot  # type: ignore[attr-defined]
    if seed := os.environ.get("FAULTS_POWER"):
        _prepare_power_loss(int(seed))
    sys.exit(run())


if __name__ == "__main__":
    main()
