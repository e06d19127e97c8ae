"""What workers do to each other: one that dies, many at once, and a barrier of many.

- A worker is killed by SIGKILL while another one waits for it in a step of `sync`. The time is
  from the kill to the step, which its lease ends; the bar leaves 50 ms for the machine.
- 64 workers push 1 MB each to one model, `async`, for some seconds: who gets how much, and the
  times of all pushes.
- 32 workers push 10 MB each at the same time: to a model in `sync`, which makes one step of them,
  and in turn to one in `async`, which makes a step of each. Both have plain SGD, whose step reads
  and writes as many bytes as adding to a sum does. The time is to the last answer.

Eight processes have the workers of the last two; see `wire/crowd.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import stepwell

from benchmarks import adam, ours
from benchmarks.measure import Result, Row, at_most, ms
from benchmarks.programs import Program
from benchmarks.server import Server, serving

LEASE_S = 1.0
SLACK = 1.05  # leases: 50 ms, to notice the end and to make the step
DEATHS = 7
PROCESSES = 8
LEAD_S = 0.1  # to tell all workers before the first one begins

MANY, MANY_SIZE, WINDOW_S = 64, 250_000, 8.0
BARRIER, BARRIER_SIZE, ROUNDS = 32, 2_500_000, 9


def run(
    lease_s: float = LEASE_S,
    deaths: int = DEATHS,
    many: int = MANY,
    many_size: int = MANY_SIZE,
    window_s: float = WINDOW_S,
    barrier: int = BARRIER,
    barrier_size: int = BARRIER_SIZE,
    rounds: int = ROUNDS,
    processes: int = PROCESSES,
) -> Result:
    """Measure everything."""
    rows, seconds = dead_worker(lease_s, deaths)
    for more, told in (
        many_workers(many, many_size, window_s, processes),
        barrier_of(barrier, barrier_size, rounds, processes),
    ):
        rows += more
        seconds |= told
    return Result(rows, seconds)


# A worker that dies


def dead_worker(lease_s: float, deaths: int) -> tuple[list[Row], dict[str, float]]:
    """Kill one of two workers, several times, and time the step that waited for it."""
    with ExitStack() as stack:
        server = stack.enter_context(serving())
        client = stack.enter_context(stepwell.Client(server.url, transport="http"))
        model = create(client, "dead", 1024, stepwell.Sync(2, lease_s=lease_s))
        worker = stack.enter_context(model.worker("lives"))
        steps, delays = [], []
        for number in range(deaths):
            with crowd(server, 1024, 1, 1, "dead", first=number) as (dying,):
                for _ in range(2):  # the first to warm up
                    began = time.monotonic() + LEAD_S
                    dying.tell("once", model="dead", begins=began)
                    time.sleep(max(0.0, began - time.monotonic()))
                    worker.push({ours.TENSOR: adam.gradient(1024)})
                    steps.append(max(time.monotonic(), dying.hear()["ended"]) - began)
                dying.kill()
                began = time.monotonic()
                worker.push({ours.TENSOR: adam.gradient(1024)})
                delays.append(time.monotonic() - began)
        check(client, "dead", 3 * deaths)
    delay, step = max(delays), statistics.median(steps)
    row = at_most(
        f"a sync step whose other worker is killed: the longest of {deaths}, against its lease",
        delay / lease_s,
        SLACK,
        f"{ms(delay)}, median {ms(statistics.median(delays))}; lease {ms(lease_s)}; a step of both "
        f"{ms(step)}",
    )
    return [row], {"dead": delay, "step": step}


# Many at once


def many_workers(
    count: int, size: int, window_s: float, processes: int
) -> tuple[list[Row], dict[str, float]]:
    """Let many push at the same time for a while."""
    with ExitStack() as stack:
        server = stack.enter_context(serving())
        client = stack.enter_context(stepwell.Client(server.url, transport="http"))
        create(client, "many", size, stepwell.Async())
        workers = stack.enter_context(crowd(server, size, count, processes, "many"))
        found: list[list[float]] = []
        pushes = 0
        for length_s in (window_s / 8, window_s):  # the first to warm up
            begins = time.monotonic() + LEAD_S
            for each in workers:
                each.tell("until", model="many", begins=begins, ends=begins + length_s)
            found = [taken for each in workers for taken in each.hear()["seconds"]]
            pushes += sum(map(len, found))
        check(client, "many", pushes)
    shares = [len(taken) for taken in found]
    mean = statistics.mean(shares)
    times = sorted(second for taken in found for second in taken)
    p50, p99 = quantile(times, 0.5), quantile(times, 0.99)
    who = f"{count} workers, {4 * size / 1e6:.3g} MB a push, async"
    rows = [
        at_most(
            f"{who}: the luckiest's share, against the mean",
            max(shares) / mean,
            2,
            f"{max(shares)} against {mean:.1f} pushes",
        ),
        at_most(
            f"{who}: the mean share, against the unluckiest's",
            mean / min(shares),
            2,
            f"{mean:.1f} against {min(shares)} pushes",
        ),
        at_most(
            f"{who}: p99 of a push, against p50", p99 / p50, 10, f"{ms(p99)} against {ms(p50)}"
        ),
    ]
    return rows, {"many/p50": p50, "many/p99": p99}


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value that a share of some ordered values does not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# A barrier


def barrier_of(
    count: int, size: int, rounds: int, processes: int
) -> tuple[list[Row], dict[str, float]]:
    """Let many push once each, at a barrier and without one, in turn."""
    modes = {"sync": stepwell.Sync(count), "async": stepwell.Async()}
    room = 4 * size * (count + 8) * 2
    with ExitStack() as stack:
        server = stack.enter_context(serving("--staging-bytes", str(max(room, 1 << 28))))
        client = stack.enter_context(stepwell.Client(server.url, transport="http"))
        for name, mode in modes.items():
            create(client, name, size, mode)
        workers = stack.enter_context(crowd(server, size, count, processes, *modes))
        times: dict[str, list[float]] = {name: [] for name in modes}
        for _ in range(1 + rounds):  # the first to warm up
            for name in modes:
                times[name].append(_all_push_once(workers, name))
        check(client, "sync", 1 + rounds)
        check(client, "async", count * (1 + rounds))
    seconds = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    ratio = statistics.median(
        one / other for one, other in zip(times["sync"][1:], times["async"][1:], strict=True)
    )
    what = f"{count} workers, {4 * size / 1e6:.3g} MB each at once"
    detail = f"{ms(seconds['sync'])} against {ms(seconds['async'])}"
    rate = count * 4 * size / seconds["sync"] / 1e9
    return [
        at_most(
            f"{what}: one step of all (sync), against a step of each (async)",
            ratio,
            1.15,
            f"{detail}; {rate:.2f} GB/s",
        ),
    ], {f"barrier/{name}": value for name, value in seconds.items()}


def _all_push_once(workers: Sequence[Program], model: str) -> float:
    begins = time.monotonic() + LEAD_S
    for each in workers:
        each.tell("once", model=model, begins=begins)
    return max(float(each.hear()["ended"]) for each in workers) - begins


# What all need


def create(
    client: stepwell.Client, name: str, size: int, mode: stepwell.Consistency
) -> stepwell.Model:
    """Create a model of one tensor with plain SGD, whose step is no larger than an addition."""
    parameters = {ours.TENSOR: adam.parameters(size)}
    return client.create_model(name, parameters, optimizer=stepwell.SGD(1e-3), consistency=mode)


@contextmanager
def crowd(
    server: Server, size: int, count: int, processes: int, *models: str, first: int = 0
) -> Iterator[list[Program]]:
    """Start so many workers in so many processes at most."""
    share = -(-count // processes)
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Program(
                    "wire.crowd",
                    server.url,
                    size,
                    first + begin,
                    min(share, count - begin),
                    *models,
                    environment={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
            )
            for begin in range(0, count, share)
        ]


def check(client: stepwell.Client, model: str, steps: int) -> None:
    """Check that so many steps were made."""
    version = client.model(model).describe()["version"]
    if version != steps:
        raise AssertionError(f"{model!r} makes {steps} steps. Received: {version}")
