"""Quorum: the first K of N workers make the step."""

from __future__ import annotations

import pytest
from stepwell_core.consistency import Drop, Quorum, Standing, Step, Wait, from_json
from stepwell_core.errors import InvalidArgument

from tests.core.consistency.contract import ConsistencyContract, Push


class TestQuorum(ConsistencyContract):
    examples = (Quorum(1, 1), Quorum(3, 2), Quorum(5, 1), Quorum(5, 3), Quorum(5, 5))

    def full_house(self, mode):
        return mode.quorum

    def test_the_first_k_make_the_step_and_the_others_are_told_that_they_are_late(self):
        """Whoever they are; in the order of their names."""
        policy = Quorum(3, 2).policy(Standing({"a": 0, "b": 0, "c": 0}, 3))
        c, a = Push("c", 4), Push("a", 4)

        assert policy.offer(c, 4) == Wait()
        assert policy.offer(a, 4) == Step((a, c))
        assert policy.offer(Push("b", 4), 5) == Drop("dropped_late")

    def test_a_slow_worker_that_pulls_again_is_in_the_next_step(self):
        """Being late once is not being out."""
        policy = Quorum(2, 1).policy(Standing({"a": 0, "b": 0}, 2))
        fresh = Push("b", 5)

        assert policy.offer(fresh, 5) == Step((fresh,))

    def test_fewer_than_k_that_are_left_make_the_step(self):
        """More may die than there are backups; nobody who lives waits for them."""
        policy = Quorum(3, 2).policy(Standing({"a": 0, "b": 0, "c": 0}, 3))
        a = Push("a", 0)
        policy.offer(a, 0)

        policy.leave("b")
        assert policy.due() is None
        policy.leave("c")

        assert policy.due() == Step((a,))

    def test_room_is_kept_for_all_workers_though_a_step_is_made_of_some(self):
        """A late gradient is dropped once it has come; until then it needs a place of its own."""
        assert (Quorum(8, 6).most_kept, Quorum(8, 6).most_in_step) == (8, 6)

    @pytest.mark.parametrize("quorum", [0, -1, 4, 1.0, "2", None, True])
    def test_a_quorum_that_cannot_be_is_refused(self, quorum):
        """From 1 to the number of workers."""
        with pytest.raises(InvalidArgument, match="quorum"):
            Quorum(3, quorum)
        with pytest.raises(InvalidArgument, match="quorum"):
            from_json({"mode": "quorum", "workers": 3, "quorum": quorum})
