"""Workers and a network in virtual time: nothing waits, and a seed decides all chances.

Workers do what the client's session does; the server is that of `simulated_server.py`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stepwell_core.consistency import Consistency
from stepwell_core.errors import Fenced, SessionExpired, StepwellError, Unavailable
from stepwell_core.pipeline import Gradient
from stepwell_core.push import Push
from stepwell_core.session import Result, Session

from tests.core.simulated_server import LAYOUT, NAMES, Answer, Server, Time

LEASE_S, PATIENCE_S = 2.0, 5.0
TIMEOUT_S = 0.6
"""After which a worker asks again."""

WORK_S = {"slow": 1.5}
QUICK_WORK_S = 0.6


@dataclass(frozen=True)
class Network:
    """What becomes of a message.

    Attributes:
        delay_s: At most.
        transfer_s: How long a gradient takes at most.
        loss: Share of messages that never come; never more than two of a call in a row.
        repeats: Share of messages that come twice.
    """

    delay_s: float = 0.05
    transfer_s: float = 0.1
    loss: float = 0.0
    repeats: float = 0.0


CALM = Network()
FAULTY = Network(delay_s=0.3, transfer_s=0.3, loss=0.15, repeats=0.15)


@dataclass(frozen=True)
class Plan:
    """One schedule.

    Attributes:
        mode: At the start.
        kinds: Of the workers, by their place in `NAMES`; see `World`.
        network: Between them and the server.
        switches: At which time another mode is chosen, and which; None restarts the server.
        seed: Of all chances.
        horizon_s: When it ends.
    """

    mode: Consistency
    kinds: Sequence[str]
    network: Network = CALM
    switches: Sequence[tuple[float, Consistency | None]] = ()
    seed: int = 0
    horizon_s: float = 12.0


class Worker:
    """One process, which does what the client's session does.

    Attributes:
        is_gone: It was killed, or has ended.
        hangs: Its trainer does nothing any more; its heartbeats go on.
        sleeps_until: It does nothing at all before.
    """

    def __init__(self, world: World, name: str, work_s: float) -> None:
        self.world, self.name, self.work_s = world, name, work_s
        self.is_gone = self.hangs = False
        self.sleeps_until = 0.0
        self.epoch = self.sequence = -1
        self._number: float | None = None  # of the gradient whose fate is not known
        self._version = 0
        self._open()

    def _do(self, action: Callable[[], None], *, is_training: bool = True) -> None:
        """Do something now, unless there is nobody to do it; who sleeps does it later."""
        if self.is_gone or (is_training and self.hangs):
            return
        pause_s = self.sleeps_until - self.world.time.now
        if pause_s > 0:
            self.world.time.after(pause_s, lambda: self._do(action, is_training=is_training))
        else:
            action()

    def _later(self, seconds: float, action: Callable[[], None], **options: bool) -> None:
        self.world.time.after(seconds, lambda: self._do(action, **options))

    def _call(
        self, request: Callable[..., None], on_answer: Answer, *, may_repeat: bool = True
    ) -> None:
        """Send a request until it is answered; only an answer to the last attempt counts."""
        world = self.world
        last = lost = 0
        is_answered = False

        def arrive(number: int, value: Any) -> None:
            nonlocal is_answered
            if not is_answered and number == last and not isinstance(value, Unavailable):
                is_answered = True
                on_answer(value)

        def attempt() -> None:
            nonlocal last, lost
            if is_answered:
                return
            last += 1
            number = last

            def reply(value: Any) -> None:
                nonlocal lost
                lost += world.send(
                    lambda is_cut: None if is_cut else self._do(lambda: arrive(number, value)),
                    may_fail=lost < 2,
                )

            lost += world.send(
                lambda is_cut: request(self, is_cut, reply),
                may_fail=lost < 2,
                may_repeat=may_repeat,
            )
            self._later(TIMEOUT_S, attempt)

        attempt()

    def _open(self) -> None:
        """Never delivered twice by the network: who loses the second epoch would be fenced."""
        self._call(self.world.server_open, self._opened, may_repeat=False)

    def _opened(self, answer: tuple[int, Session | None, float]) -> None:
        epoch, previous, lease_s = answer
        before = self.epoch, self.sequence
        is_first = self.epoch < 0
        self.epoch, self.sequence = epoch, 0
        if is_first:
            self._beat(lease_s)
        if self._number is None:
            self._pull()
        elif previous is not None and (previous.epoch, previous.last_sequence) == before:
            assert previous.last_result is not None
            self._told(previous.last_result.outcome)
            self._pull()
        else:
            self._push()

    def _beat(self, lease_s: float) -> None:
        server, epoch = self.world.server, self.epoch
        self.world.send(lambda _: server.heartbeat(self.name, epoch), may_fail=True)
        self._later(lease_s / 3, lambda: self._beat(lease_s), is_training=False)

    def _pull(self) -> None:
        def pulled(version: int) -> None:
            self._version = version
            self._later(self.work_s * self.world.random.uniform(0.5, 1.0), self._computed)

        self._call(self.world.server_pull, pulled)

    def _computed(self) -> None:
        self._number = next(self.world.numbers)
        self._push()

    def _push(self) -> None:
        assert self._number is not None
        self._call(self.world.server_push(self._made()), self._pushed)

    def _made(self) -> Callable[[], Push]:
        key = self.name, self.epoch, self.sequence
        number, version = self._number, self._version

        def make() -> Push:
            arenas = LAYOUT.new_arenas(0.0)
            arenas["float64"][NAMES.index(self.name)] = -1.0
            gradient = Gradient(LAYOUT, arenas)
            return Push(*key, "1" * 32, gradient, version, metrics={"number": number or 0.0})

        return make

    def _pushed(self, answer: Result | StepwellError) -> None:
        if isinstance(answer, SessionExpired):
            self._open()
        elif isinstance(answer, Fenced):
            assert self.world.has_twin(self), "fenced by nobody"
            self.is_gone = True
        else:
            assert isinstance(answer, Result), answer
            self._told(answer.outcome)
            self.sequence += 1
            self._pull()

    def _told(self, outcome: str) -> None:
        assert self._number is not None
        self.world.server.account.tell(self._number, outcome)
        self._number = None


class World:
    """Runs a plan.

    Kinds of workers: `fast` and `slow` work until the end, the others come to something at a drawn
    time: `dies`, `hangs` (its heartbeats go on), `sleeps` (for longer than a lease, or less),
    `returns` (is killed and started again), `late` (comes only then), `leaves` (closes its
    session), `twin` (a second process takes its name).
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.random = random.Random(plan.seed)
        self.time = Time()
        self.server = Server(plan.mode, self.time)
        self.numbers = map(float, itertools.count(1))
        self.workers: list[Worker] = []
        for name, kind in zip(NAMES, plan.kinds, strict=False):
            self._plan_worker(name, kind)
        for at, mode in plan.switches:
            action = self.server.restart if mode is None else self._switching(mode)
            self.time.after(at, action)

    def _switching(self, mode: Consistency) -> Callable[[], None]:
        return lambda: self.server.switch(mode)

    def _plan_worker(self, name: str, kind: str) -> None:
        start, at = self.random.uniform(0.0, 0.5), self.random.uniform(0.5, 5.0)
        work_s = WORK_S.get(kind, QUICK_WORK_S)

        def come() -> None:
            self.workers.append(Worker(self, name, work_s))

        def now(happens: Callable[[Worker], None]) -> Callable[[], None]:
            return lambda: happens(next(w for w in self.workers if w.name == name))

        def die(worker: Worker) -> None:
            worker.is_gone = True

        def hang(worker: Worker) -> None:
            worker.hangs = True

        def sleep(worker: Worker) -> None:
            worker.sleeps_until = self.time.now + self.random.uniform(0.5, 2.5) * LEASE_S
            self.time.after(worker.sleeps_until - self.time.now, self.server.disturb)

        def leave(worker: Worker) -> None:
            worker.is_gone = True
            self.send(lambda _: self.server.close(name, worker.epoch), may_fail=True)

        self.time.after(at if kind == "late" else start, come)
        happening = {"dies": die, "returns": die, "hangs": hang, "sleeps": sleep, "leaves": leave}
        if kind in happening:
            self.time.after(at, now(happening[kind]))
        if kind in ("returns", "twin"):
            self.time.after(at + self.random.uniform(0.1, 2.0) * LEASE_S, come)

    def has_twin(self, worker: Worker) -> bool:
        """Return whether another process has the worker's name."""
        return sum(other.name == worker.name for other in self.workers) > 1

    # The network

    def send(
        self, deliver: Callable[[bool], None], *, may_fail: bool, may_repeat: bool = True
    ) -> bool:
        """Deliver a message, which is told whether it is cut in the middle; False if it is whole.

        Returns:
            Whether it is lost or cut.
        """
        network = self.plan.network
        fails = may_fail and self.random.random() < network.loss
        is_cut = fails and self.random.random() < 0.5
        if not fails or is_cut:
            self.time.after(self.random.uniform(0, network.delay_s), lambda: deliver(is_cut))
        if may_repeat and self.random.random() < network.repeats:
            self.time.after(self.random.uniform(0, 8 * network.delay_s), lambda: deliver(False))
        return fails

    # What a server's routes do

    def server_open(self, worker: Worker, is_cut: bool, answer: Answer) -> None:
        if not is_cut:
            self.server.open(worker.name, answer)

    def server_pull(self, worker: Worker, is_cut: bool, answer: Answer) -> None:
        if not is_cut:
            answer(self.server.engine.counters.parameters_version)

    def server_push(self, make: Callable[[], Push]) -> Callable[[Worker, bool, Answer], None]:
        def push(worker: Worker, is_cut: bool, answer: Answer) -> None:
            transfer_s = self.random.uniform(0, self.plan.network.transfer_s)
            self.server.push(make(), transfer_s, is_cut, answer)

        return push

    # Running

    @property
    def longest_pause_s(self) -> float:
        """For how long the model may stand still when nothing new happens."""
        network, kinds = self.plan.network, self.plan.kinds
        lost_s = 4 * TIMEOUT_S if network.loss else 0.0
        call_s = lost_s + 2 * network.delay_s + network.transfer_s
        cycle_s = max(WORK_S.get(kind, QUICK_WORK_S) for kind in kinds) + 2 * call_s
        gone_s = PATIENCE_S if "hangs" in kinds else LEASE_S
        return gone_s + 2 * cycle_s

    def run(self) -> Server:
        """Let everything happen; fails when the model stands still while a worker works."""
        server, time, longest_s = self.server, self.time, self.longest_pause_s
        while min(time.next, end := server.next_end) <= self.plan.horizon_s:
            if end <= time.next:
                time.now = max(time.now, end)
                server.expire()
            else:
                time.go_on()
            if server.is_idle or not server.can_advance:
                server.disturb()
            last = max([server.disturbed, *server.advances[-1:]])
            assert time.now - last <= longest_s, "the model stands still"
        server.account.check(server.engine)
        return server
