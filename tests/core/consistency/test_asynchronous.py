"""Asynchronous: every push is a step."""

from __future__ import annotations

from stepwell_core.consistency import Async, Step, from_json

from tests.core.consistency.contract import ConsistencyContract, Push


class TestAsync(ConsistencyContract):
    examples = (Async(),)

    def full_house(self, mode):
        return 1

    def test_every_push_is_a_step_of_its_own(self):
        """However old its gradient is."""
        policy = Async().policy()
        policy.join("w0")

        for version in (None, 0, 41):
            push = Push("w0", version)
            assert policy.offer(push, 41) == Step((push,))

    def test_the_name_alone_is_enough(self):
        """It has no arguments, so `"async"` says all."""
        assert from_json("async") == Async()

    def test_leaving_makes_no_step(self):
        """Nobody waits, so nobody is let go."""
        policy = Async().policy(["w0", "w1"], 2)

        assert policy.leave("w0") is None
