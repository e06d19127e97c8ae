"""Synchronous: a step is one gradient from each of N workers, in the order of their names."""

from __future__ import annotations

import itertools

import pytest
from stepwell_core.consistency import Drop, Standing, Step, Sync, Wait, from_json
from stepwell_core.consistency.synchronous import MAX_WORKERS
from stepwell_core.errors import InvalidArgument

from tests.core.consistency.contract import ConsistencyContract, Push


def barrier(workers: int, *members: str):
    """Return the policy of a barrier that some workers have joined."""
    policy = Sync(workers).policy()
    for member in members:
        policy.join(member)
    return policy


class TestSync(ConsistencyContract):
    examples = (
        Sync(1),
        Sync(2),
        Sync(3),
        Sync(5),
        Sync("all"),
        Sync(3, on_leave="wait"),
        Sync(1, reduction="arrival"),
        Sync(3, reduction="arrival"),
        Sync("all", reduction="arrival"),
    )

    def full_house(self, mode):
        return 1 if mode.workers == "all" else mode.workers

    def test_a_step_needs_one_push_of_each_worker(self):
        """The last one to come makes the step; all others wait."""
        policy = barrier(3, "a", "b", "c")
        a, b, c = (Push(worker, 0) for worker in "abc")

        assert policy.offer(a, 0) == Wait()
        assert policy.offer(b, 0) == Wait()
        assert policy.offer(c, 0) == Step((a, b, c))
        assert list(policy.waiting) == []

    def test_the_order_of_a_step_does_not_depend_on_the_arrival(self):
        """Reduced in the bytewise order of the names: w-1, w.1, w10, w2."""
        workers = ("w-1", "w.1", "w10", "w2")
        for arrival in itertools.permutations(workers):
            policy = barrier(4, *reversed(arrival))

            decisions = [policy.offer(Push(worker, 0), 0) for worker in arrival]

            assert [push.worker for push in decisions[-1].pushes] == list(workers)

    def test_a_late_push_is_dropped_and_does_not_count(self):
        """It was computed at parameters that are no more; the barrier goes on waiting."""
        policy = barrier(2, "a", "b")
        policy.offer(Push("a", 7), 7)

        assert policy.offer(Push("b", 6), 7) == Drop("dropped_late")
        assert isinstance(policy.offer(Push("b", 7), 7), Step)

    def test_a_worker_that_never_pulled_is_not_late(self):
        """It holds the initial parameters; it cannot say which version that is."""
        policy = barrier(1, "a")

        assert isinstance(policy.offer(Push("a", None), 7), Step)

    def test_the_first_step_waits_for_all_n_workers(self):
        """Two early workers do not start without the third."""
        policy = barrier(3, "a", "b")

        assert policy.offer(Push("a", 0), 0) == Wait()
        assert policy.offer(Push("b", 0), 0) == Wait()

    def test_leaving_shrinks_the_barrier_and_may_complete_it(self):
        """Those who wait for the one who left go on at once."""
        policy = barrier(3, "a", "b", "c")
        a, b = Push("a", 0), Push("b", 0)
        policy.offer(b, 0)
        policy.offer(a, 0)

        policy.leave("c")
        assert policy.due() == Step((a, b))
        assert policy.due() is None
        assert policy.needed == 2

    def test_leaving_forgets_the_push_that_waits(self):
        """A worker that closed its session contributes no more."""
        policy = barrier(3, "a", "b", "c")
        b = Push("b", 0)
        policy.offer(Push("a", 0), 0)
        policy.offer(b, 0)

        policy.leave("a")
        assert policy.due() is None
        assert list(policy.waiting) == [b]

    def test_joining_grows_the_barrier_back_up_to_n(self):
        """Another worker may take the place of one who left; more than N are not waited for."""
        policy = barrier(3, "a", "b", "c")
        policy.leave("b")
        policy.leave("c")
        needed = [policy.needed]

        for worker in ("d", "e", "f"):
            policy.join(worker)
            needed.append(policy.needed)

        assert needed == [1, 2, 3, 3]

    def test_one_more_than_n_can_leave_without_shrinking_the_barrier(self):
        """Of four workers in a barrier of three, three stay."""
        policy = barrier(3, "a", "b", "c", "d")

        policy.leave("d")
        assert policy.needed == 3
        policy.leave("c")
        assert policy.needed == 2

    def test_rejoining_forgets_the_push_that_waits_and_changes_no_number(self):
        """A worker that was started again is one worker, and its first life's push is gone."""
        policy = barrier(2, "a", "b")
        policy.offer(Push("a", 0), 0)

        policy.join("a")

        assert list(policy.waiting) == []
        assert policy.needed == 2
        assert policy.offer(Push("b", 0), 0) == Wait()

    def test_when_all_have_left_the_next_step_waits_for_n_again(self):
        """A second run on the same model is as synchronous as the first."""
        policy = barrier(2, "a", "b")
        policy.leave("a")
        policy.leave("b")

        policy.join("a")

        assert policy.needed == 2
        assert policy.offer(Push("a", 0), 0) == Wait()

    def test_a_barrier_that_had_shrunk_is_made_again_as_small(self):
        """After a restart the one who stayed does not wait for the one who left before."""
        policy = Sync(2).policy(Standing({"a": 3}, most_open=2))

        assert isinstance(policy.offer(Push("a", 0), 0), Step)

    @pytest.mark.parametrize("workers", [0, -1, MAX_WORKERS + 1, True, 2.0, "2", None, [2]])
    def test_a_number_of_workers_that_cannot_be_is_refused(self, workers):
        """From Python and from JSON alike."""
        with pytest.raises(InvalidArgument, match="workers"):
            Sync(workers)
        with pytest.raises(InvalidArgument, match="workers"):
            from_json({"mode": "sync", "workers": workers})

    @pytest.mark.parametrize("comes_back", [True, False])
    def test_with_one_that_leaves_all_are_forgotten_where_gradients_are_added(self, comes_back):
        """Its gradient cannot be taken out of the sum, so the sum begins anew."""
        policy = Sync(3, reduction="arrival").policy()
        for worker in "abc":
            policy.join(worker)
        for worker in "ab":
            policy.offer(Push(worker, 0), 0)

        if comes_back:
            policy.join("a")
        else:
            policy.leave("a")

        assert policy.due() is None
        assert list(policy.waiting) == []

    def test_who_contributed_nothing_leaves_the_others_waiting(self):
        """The sum has nothing of it; and it may be all that they waited for."""
        policy = Sync(3, reduction="arrival").policy()
        for worker in "abc":
            policy.join(worker)
        a, b = Push("a", 0), Push("b", 0)
        policy.offer(b, 0)
        policy.offer(a, 0)

        policy.join("c")
        assert list(policy.waiting) == [a, b]
        policy.leave("c")
        assert policy.due() == Step((a, b))

    def test_all_is_whoever_is_there(self):
        """The barrier grows and shrinks with the workers, from the first step on."""
        policy = Sync("all").policy()
        needed = []
        for worker in ("a", "b", "c"):
            policy.join(worker)
            needed.append(policy.needed)
        policy.leave("b")

        assert [*needed, policy.needed] == [1, 2, 3, 2]

    def test_a_barrier_that_waits_for_n_does_not_shrink(self):
        """Another worker has to take the place of the one who left."""
        policy = Sync(2, on_leave="wait").policy(Standing({"a": 0, "b": 0}, 2))
        a = Push("a", 0)
        policy.offer(a, 0)

        policy.leave("b")
        assert policy.due() is None
        policy.join("c")

        assert isinstance(policy.offer(Push("c", 0), 0), Step)

    @pytest.mark.parametrize("on_leave", ["", "stay", None, 2, "Shrink"])
    def test_what_cannot_happen_when_somebody_leaves_is_refused(self, on_leave):
        """From Python and from JSON alike."""
        with pytest.raises(InvalidArgument, match="on_leave"):
            Sync(2, on_leave=on_leave)
        with pytest.raises(InvalidArgument, match="on_leave"):
            from_json({"mode": "sync", "workers": 2, "on_leave": on_leave})

    def test_all_and_wait_contradict_each_other(self):
        """It could not say for how many."""
        with pytest.raises(InvalidArgument, match="number"):
            Sync("all", on_leave="wait")

    @pytest.mark.parametrize("reduction", ["", "Order", "ring", None, 1, ["order"]])
    def test_a_reduction_that_there_is_not_is_refused(self, reduction):
        """From Python and from JSON alike."""
        with pytest.raises(InvalidArgument, match="reduction"):
            Sync(2, reduction=reduction)
        with pytest.raises(InvalidArgument, match="reduction"):
            from_json({"mode": "sync", "workers": 2, "reduction": reduction})

    def test_what_was_saved_before_there_was_a_reduction_is_in_order(self):
        """Older checkpoints are read."""
        assert from_json({"mode": "sync", "workers": 2}) == Sync(2, reduction="order")
