"""What durability costs: one worker pushes over HTTP to three servers, with Adam, in turn.

The disk's rate is taken in the same run: records of the same size, written one after the other past
the page cache and synced, as the journal does. The bar is for payloads that come at half that rate
at most: then `everysec` may take 1.3 times as long as `memory`. `always` has the disk as its limit.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks import adam, ours
from benchmarks.measure import Result, Row, at_most, medians_told, ms, shown
from benchmarks.server import serving

SIZES = {"1 MB": 250_000, "10 MB": 2_500_000, "102 MB": 25_600_000}
MODES = ("memory", "everysec", "always")
ROUNDS = 25
DISK_RECORDS = 4  # are written over in turn, as segments are used again


def run(sizes: Mapping[str, int] = SIZES, rounds: int = ROUNDS) -> Result:
    """Measure each size, a name and a number of float32 elements."""
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    for size, elements in sizes.items():
        found = measure(elements, rounds)
        rows += rows_of(size, 4 * elements, found)
        seconds |= {f"{size}/{name}": value for name, value in found.items()}
    return Result(rows, seconds)


def measure(elements: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a push in each mode, paced and not, and of the disk alone."""
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(bare_disk(4 * elements))
        gradient = {ours.TENSOR: adam.gradient(elements)}
        start = {ours.TENSOR: adam.parameters(elements)}
        turns: dict[str, Callable[[], float]] = {"disk": lambda: timed(disk)}
        for mode in MODES:
            server = stack.enter_context(serving("--durability", mode))
            worker = stack.enter_context(ours.working(server.url, start, model="m"))
            ours.check(worker, gradient)
            turns[mode] = push_of(worker, gradient)
        seconds = medians_told(turns, rounds)
        pause_s = 2 * seconds["disk"]  # so payloads come at half the disk's rate
        paced = {f"{mode}, paced": paced_push(turns[mode], pause_s) for mode in MODES}
        return seconds | medians_told(paced, rounds)


def push_of(worker: object, gradient: object) -> Callable[[], float]:
    """Return a turn that pushes once."""
    return lambda: timed(lambda: worker.push(gradient))  # type: ignore[attr-defined]


def paced_push(push: Callable[[], float], period_s: float) -> Callable[[], float]:
    """Return a turn of a push that comes so long after the one before has begun."""

    def turn() -> float:
        spent_s = push()
        time.sleep(max(0.0, period_s - spent_s))
        return spent_s

    return turn


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextlib.contextmanager
def bare_disk(nbytes: int) -> Iterator[Callable[[], None]]:
    """Give what writes one record of so many bytes, past the page cache, and syncs."""
    extent = -(-nbytes // 4096) * 4096
    block = mmap.mmap(-1, extent)
    block.write(os.urandom(extent))
    with tempfile.TemporaryDirectory(prefix="stepwell-bench-") as folder:
        path = Path(folder) / "records"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        count = 0

        def write() -> None:
            nonlocal count
            os.pwrite(file, block, (count % DISK_RECORDS) * extent)
            os.fdatasync(file)
            count += 1

        try:
            for _ in range(DISK_RECORDS):
                write()
            yield write
        finally:
            os.close(file)


def rows_of(size: str, nbytes: int, seconds: dict[str, float]) -> list[Row]:
    """Return the figures of one size."""
    memory, disk = seconds["memory"], seconds["disk"]
    rate = f"{nbytes / disk / 1e9:.2f} GB/s"
    paced = {mode: seconds[f"{mode}, paced"] for mode in MODES}
    return [
        at_most(
            f"push {size}, everysec against memory, payloads at half the disk's rate ({rate})",
            paced["everysec"] / paced["memory"],
            1.3,
            f"{ms(paced['everysec'])} against {ms(paced['memory'])}",
        ),
        *(
            shown(
                f"push {size}, {mode} against memory, as fast as one worker can",
                seconds[mode] / memory,
                f"{ms(seconds[mode])} against {ms(memory)}",
            )
            for mode in MODES[1:]
        ),
        shown(
            f"push {size}, always against memory and the disk's own write behind it",
            seconds["always"] / (memory + disk),
            f"{ms(seconds['always'])} against {ms(memory)} + {ms(disk)}",
        ),
    ]
