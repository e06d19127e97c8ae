"""Buffered: every K pushes make a step."""

from __future__ import annotations

import math

import pytest
from stepwell_core.consistency import Buffered, Gather, Standing, from_json
from stepwell_core.errors import InvalidArgument

from tests.core.consistency.contract import ConsistencyContract, Floor, Push


class TestBuffered(ConsistencyContract):
    examples = (Buffered(1), Buffered(2), Buffered(3), Buffered(7))

    def full_house(self, mode):
        return 1

    def test_the_kth_push_makes_the_step_whoever_sends_it(self):
        """One worker alone can fill the buffer."""
        floor = Floor(Buffered(3))
        floor.join("a")
        floor.join("b")

        versions = []
        for worker in "aabab":
            floor.push(worker, floor.parameters_version)
            versions.append(floor.parameters_version)

        assert versions == [0, 0, 1, 1, 1]
        assert len(floor.gathered) == 2

    def test_a_stale_gradient_counts_less(self):
        """FedBuff: 1 / sqrt(1 + staleness)."""
        policy = Buffered(100).policy()

        discounts = [policy.offer(Push("a", 41 - behind), 41).discount for behind in (0, 1, 3, 8)]

        assert discounts == [1.0, 1 / math.sqrt(2), 1 / 2, 1 / 3]

    def test_what_was_gathered_before_a_restart_counts(self):
        """It was acknowledged."""
        policy = Buffered(3).policy(Standing({"a": 0}, 1, gathered=2))

        assert policy.offer(Push("a", 0), 0) == Gather(1.0, completes=True)

    def test_a_push_that_was_dropped_does_not_fill_the_buffer(self):
        """One that was not finite, say."""
        policy = Buffered(2).policy(Standing({"a": 0}, 1, gathered=0))
        policy.settled("a", "skipped_nonfinite")

        assert policy.offer(Push("a", 0), 0) == Gather(1.0, completes=False)

    @pytest.mark.parametrize("size", [0, -3, 1.0, "2", None, True, 10**9])
    def test_a_size_that_cannot_be_is_refused(self, size):
        """From Python and from JSON alike."""
        with pytest.raises(InvalidArgument, match="size"):
            Buffered(size)
        with pytest.raises(InvalidArgument, match="size"):
            from_json({"mode": "buffered", "size": size})
