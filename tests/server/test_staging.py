"""The memory for payloads on their way: who gets it, in which order, and that it comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwell_core.errors import BodyTooLarge, DoesNotFit, ShuttingDown, StagingFull, Unavailable
from stepwell_core.layout import Layout, Tensor
from stepwell_core.placement import extent
from stepwell_server import staging as room
from stepwell_server.counts import Counts
from stepwell_server.idle import GRAIN_BYTES, IdleBlocks
from stepwell_server.leases import Lease
from stepwell_server.staging import Staging

MIB = 1 << 20
LAYOUT = Layout([Tensor("w", (MIB // 4,), "float32")])


def run(scenario: Callable[[Staging], Awaitable[Any]], budget: int = 4 * MIB) -> Any:
    """Run a scenario on a new staging."""

    async def main() -> Any:
        return await scenario(Staging(budget, Counts()))

    return asyncio.run(main())


async def settle() -> None:
    """Let the event loop do what is due."""
    for _ in range(5):
        await asyncio.sleep(0)


class Takers:
    """Requests for leases that run at the same time, by name."""

    def __init__(self, staging: Staging) -> None:
        self.staging, self.tasks = staging, {}

    async def begin(self, name: str, nbytes: int, *args: Any, **options: Any) -> None:
        self.tasks[name] = asyncio.ensure_future(self.staging.take(nbytes, *args, **options))
        await settle()

    @property
    def served(self) -> str:
        return "".join(name for name, task in self.tasks.items() if task.done())

    async def release(self, name: str) -> None:
        self.tasks[name].result().release()
        await settle()


def test_a_buffer_is_used_again_and_again():
    """Its pages are there already; that is what the pool is for."""

    async def scenario(staging: Staging) -> None:
        with await staging.take(extent(LAYOUT)) as lease:
            first = lease.arenas(LAYOUT, "native")["float32"]
            first[:] = 7
        with await staging.take(extent(LAYOUT)) as lease:
            again = lease.arenas(LAYOUT, "native")["float32"]
            assert again.ctypes.data == first.ctypes.data
        assert staging.idle_bytes == MIB

    run(scenario)


def test_two_leases_at_once_never_share_a_byte():
    """Whatever was used before."""

    async def scenario(staging: Staging) -> None:
        (await staging.take(MIB)).release()
        one, two = await staging.take(MIB), await staging.take(MIB)
        one.arenas(LAYOUT, "native")["float32"][:] = 1
        two.arenas(LAYOUT, "native")["float32"][:] = 2
        assert (one.arenas(LAYOUT, "native")["float32"] == 1).all()

    run(scenario)


def test_a_lease_is_released_once_however_often_it_is_said():
    """By the handler and by the lane."""

    async def scenario(staging: Staging) -> None:
        other = await staging.take(MIB)
        lease = await staging.take(MIB)
        for _ in range(3):
            lease.release()
        assert (staging.leases, staging.used_bytes, staging.idle_bytes) == (1, MIB, MIB)
        other.release()

    run(scenario)


def test_a_lease_that_was_lent_outlives_who_took_it():
    """The lane that it was lent to gives it back."""

    async def scenario(staging: Staging) -> None:
        with await staging.take(MIB) as lease:
            lease.lend()
        assert staging.leases == 1
        lease.release()
        assert staging.leases == 0

    run(scenario)


def test_who_comes_first_is_served_first_also_before_smaller_ones():
    """Small payloads would starve a large one otherwise."""

    async def scenario(staging: Staging) -> None:
        takers = Takers(staging)
        await takers.begin("a", 3 * MIB)
        await takers.begin("b", 2 * MIB)
        await takers.begin("c", MIB)
        assert takers.served == "a"
        await takers.release("a")
        assert takers.served == "abc"

    run(scenario)


def test_who_finds_no_room_in_time_is_refused_with_the_arithmetic(monkeypatch):
    """And counted; those behind it are served if they can be."""
    monkeypatch.setattr(room, "WAIT_S", 0.05)

    async def scenario(staging: Staging) -> None:
        kept = await staging.take(3 * MIB)
        kept.is_waiting = True
        takers = Takers(staging)
        await takers.begin("large", 2 * MIB)
        with pytest.raises(StagingFull) as refusal:
            await takers.tasks["large"]
        assert refusal.value.details == {"asked": 2 * MIB, "budget": 4 * MIB}
        assert f"{3 * MIB} belong to 1 pushes that wait for others" in refusal.value.message
        assert "--staging-bytes" in refusal.value.message
        assert staging._counts.staging_refused == 1
        (await staging.take(MIB)).release()

    run(scenario)


def test_who_waits_behind_one_that_gives_up_is_served(monkeypatch):
    """A cancelled request leaves nothing behind, neither in the queue nor when just served."""

    async def scenario(staging: Staging) -> None:
        takers = Takers(staging)
        await takers.begin("a", 3 * MIB)
        await takers.begin("b", 4 * MIB)
        await takers.begin("c", MIB)
        takers.tasks["b"].cancel()
        await settle()
        assert takers.tasks["c"].done()

        await takers.begin("d", 4 * MIB)
        await takers.release("c")
        takers.tasks["a"].result().release()
        staging._serve()
        takers.tasks["d"].cancel()  # it has its lease, and does not know it yet
        await settle()
        assert (staging.leases, staging.used_bytes) == (0, 0)

    run(scenario)


def test_a_session_has_one_lease_at_a_time_and_lets_others_by(monkeypatch):
    """A retry that comes while the first attempt is still received waits for its end."""
    monkeypatch.setattr(room, "WAIT_S", 5.0)

    async def scenario(staging: Staging) -> None:
        takers = Takers(staging)
        await takers.begin("a", MIB, None, "w0")
        await takers.begin("b", MIB, None, "w0")
        await takers.begin("c", MIB, None, "w1")
        assert takers.served == "ac"
        await takers.release("a")
        assert takers.served == "abc"

    run(scenario)


def test_a_payload_that_can_never_fit_is_refused_at_once():
    """With what to do."""

    async def scenario(staging: Staging) -> None:
        with pytest.raises(BodyTooLarge, match="larger --staging-bytes"):
            await staging.take(4 * MIB + 1)
        staging.reserve("sync", 2, MIB)
        with pytest.raises(BodyTooLarge):
            await staging.take(2 * MIB + 1)

    run(scenario)


def test_wide_payloads_of_which_a_barrier_cannot_have_enough_are_refused_at_once():
    """They would keep what they have, and wait for each other for ever."""

    async def scenario(staging: Staging) -> None:
        part = staging.reserve("sync", 2, MIB // 2)
        with await staging.take(MIB, part), await staging.take(MIB, part):
            pass  # twice that fits beside what is reserved
        with pytest.raises(BodyTooLarge, match="the model's own dtype"):
            await staging.take(2 * MIB, part)
        assert staging.leases == 0

    run(scenario)


def test_a_reserve_is_never_used_by_others_and_serves_its_model_at_once():
    """However many of the others wait."""

    async def scenario(staging: Staging) -> None:
        part = staging.reserve("sync", 2, MIB)
        takers = Takers(staging)
        for name in "abc":
            await takers.begin(name, MIB)
        assert takers.served == "ab"
        for name in "xyz":
            await takers.begin(name, MIB, part)
        assert takers.served == "abxy"
        await takers.release("a")
        assert takers.served == "abcxy"
        await takers.release("x")
        assert takers.served == "abcxyz"

    run(scenario)


def test_a_payload_wider_than_the_models_own_dtype_is_not_taken_from_its_reserve():
    """It would take the room of another worker's."""

    async def scenario(staging: Staging) -> None:
        part = staging.reserve("sync", 2, MIB // 2)
        await staging.take(MIB, part)
        await staging.take(MIB // 2, part)
        await staging.take(MIB // 2, part)
        assert (part.used, staging.shared.used) == (MIB, MIB)

    run(scenario)


def test_models_reserve_what_there_is_and_no_more():
    """A model that is forgotten makes room; the largest payload of any model has room beside."""

    async def scenario(staging: Staging) -> None:
        staging.reserve("async", 0, MIB)
        first = staging.reserve("first", 2, MIB)
        with pytest.raises(DoesNotFit) as refusal:
            staging.reserve("second", 2, MIB)
        assert refusal.value.details == {"needed": 5 * MIB, "available": 4 * MIB}
        assert f"2 x {MIB}" in refusal.value.message
        with pytest.raises(DoesNotFit):
            staging.reserve("large", 0, 3 * MIB)
        staging.forget("first", first)
        staging.reserve("second", 3, MIB)

    run(scenario)


def test_who_waits_for_the_reserve_of_a_model_that_is_deleted_is_told_at_once():
    """And what it had of it is for all as soon as it is released."""

    async def scenario(staging: Staging) -> None:
        part = staging.reserve("sync", 1, MIB)
        takers = Takers(staging)
        await takers.begin("a", MIB, part)
        await takers.begin("b", MIB, part)
        staging.forget("sync", part)
        with pytest.raises(Unavailable, match="no more"):
            await takers.tasks["b"]
        with pytest.raises(Unavailable, match="no more"):
            await staging.take(MIB, part)
        await takers.begin("c", 4 * MIB)
        assert "c" not in takers.served
        await takers.release("a")
        assert "c" in takers.served

    run(scenario)


def test_a_stop_refuses_who_waits_and_who_comes():
    """At once; what is leased is released as ever."""

    async def scenario(staging: Staging) -> None:
        lease = await staging.take(4 * MIB)
        takers = Takers(staging)
        await takers.begin("a", MIB)
        staging.close()
        with pytest.raises(ShuttingDown):
            await takers.tasks["a"]
        with pytest.raises(ShuttingDown):
            await staging.take(MIB)
        lease.release()
        assert (staging.used_bytes, staging.idle_bytes) == (0, 0)

    run(scenario)


def test_what_lasts_leaves_room_for_the_largest_payload_of_any_model():
    """A worker that keeps its region for hours keeps nobody's pushes out."""

    async def scenario(staging: Staging) -> None:
        staging.reserve("large", 0, 3 * MIB)
        assert staging.try_take(MIB + 1) is None
        assert staging.try_take(MIB) is not None
        assert staging.try_take(1) is None
        (await staging.take(3 * MIB)).release()

    run(scenario)


@pytest.mark.parametrize("has_block", [True, False])
def test_idle_buffers_make_room_for_what_is_wanted(has_block):
    """One of the right size is used; memory of somebody's own needs room beside all of them."""

    async def scenario(staging: Staging) -> None:
        leases = [await staging.take(MIB) for _ in range(4)]
        for lease in leases:
            lease.release()
        assert staging.idle_bytes == 4 * MIB
        lease = await staging.take(MIB, has_block=has_block)
        assert staging.idle_bytes == 3 * MIB
        lease.release()

    run(scenario)


def test_idle_buffers_that_nobody_uses_are_given_back(monkeypatch):
    """After a while."""
    monkeypatch.setattr(room, "TRIM_S", 0.01)

    async def scenario(staging: Staging) -> None:
        (await staging.take(MIB)).release()
        assert staging.idle_bytes == MIB
        async with asyncio.timeout(30):
            while staging.idle_bytes:
                await asyncio.sleep(0)

    run(scenario)


def test_idle_blocks_that_were_used_since_the_last_trim_stay():
    """Twice is needed."""
    idle = IdleBlocks()
    idle.keep(idle.take(MIB))
    idle.trim()
    assert idle.nbytes == MIB
    idle.keep(idle.take(MIB))
    idle.trim()
    assert idle.nbytes == MIB
    idle.trim()
    assert idle.nbytes == 0


def release(task: asyncio.Task[Lease]) -> None:
    """Release what a task was given, unless its part was forgotten meanwhile."""
    with contextlib.suppress(Unavailable):
        task.result().release()


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 3 * MIB), st.booleans()), max_size=40
    ),
)
def test_what_is_leased_and_idle_never_exceeds_the_budget_and_all_comes_back(steps):
    """After any order of takes, releases, cancellations, reserves and their ends."""

    async def scenario(staging: Staging) -> None:
        tasks: list[asyncio.Task[Lease]] = []
        parts = {"sync": staging.reserve("sync", 1, MIB)}
        for number, (action, nbytes, has_block) in enumerate(steps):
            if action < 5:
                part = parts.get("sync") if action % 2 else None
                nbytes = min(nbytes, MIB) if part else nbytes
                taking = staging.take(nbytes, part, number % 4 or None, has_block=has_block)
                tasks.append(asyncio.ensure_future(taking))
            elif action < 8 and tasks:
                task = tasks.pop(nbytes % len(tasks))
                if task.done():
                    release(task)
                else:
                    task.cancel()
            elif action == 8 and "sync" in parts:
                staging.forget("sync", parts.pop("sync"))
            elif action == 9 and "sync" not in parts:
                parts["sync"] = staging.reserve("sync", 1, MIB)
            if nbytes % 2:
                await asyncio.sleep(0)
            slack = GRAIN_BYTES * (len(steps) + 1)  # blocks are rounded up
            assert staging.used_bytes <= staging.budget_bytes
            assert staging.used_bytes + staging.idle_bytes <= staging.budget_bytes + slack
        for _ in range(len(tasks) + 1):
            await settle()
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                release(task)
        assert not tasks
        assert (staging.leases, staging.used_bytes) == (0, 0)
        assert all(not part.queue for part in (staging.shared, *parts.values()))
        with await staging.take(staging.shared.capacity):
            pass

    run(scenario)
