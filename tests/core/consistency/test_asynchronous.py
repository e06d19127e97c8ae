"""Asynchronous: every push is a step."""

from __future__ import annotations

import pytest
from stepwell_core.consistency import Async, Drop, Standing, Step, from_json
from stepwell_core.errors import InvalidArgument

from tests.core.consistency.contract import ConsistencyContract, Push


class TestAsync(ConsistencyContract):
    examples = (
        Async(),
        Async(3),
        Async(0, on_stale="reject"),
        Async(on_stale="scale"),
        Async(2, on_stale="scale"),
    )

    def full_house(self, mode):
        return 1

    def test_every_push_is_a_step_of_its_own(self):
        """However old its gradient is."""
        policy = Async().policy()
        policy.join("w0")

        for version in (None, 0, 41):
            push = Push("w0", version)
            assert policy.offer(push, 41) == Step((push,))

    def test_one_that_is_too_stale_is_rejected_where_that_is_wanted(self):
        """The limit itself is not too stale."""
        policy = Async(4, on_stale="reject").policy()
        at_limit = Push("w0", 37)

        assert policy.offer(at_limit, 41) == Step((at_limit,))
        assert policy.offer(Push("w0", 36), 41) == Drop("dropped_stale")

    def test_the_learning_rate_is_divided_by_the_staleness(self):
        """Zhang et al. 2015: a fresh gradient and one that is one version old count in full."""
        policy = Async(on_stale="scale").policy()

        scales = [policy.offer(Push("w0", 41 - behind), 41).scale for behind in (0, 1, 2, 4, 40)]

        assert scales == [1.0, 1.0, 1 / 2, 1 / 4, 1 / 40]

    def test_up_to_a_limit_nothing_is_scaled(self):
        """Beyond it all of the staleness counts."""
        policy = Async(3, on_stale="scale").policy()

        scales = [policy.offer(Push("w0", 41 - behind), 41).scale for behind in (3, 4)]

        assert scales == [1.0, 1 / 4]

    def test_accepted_is_accepted_beyond_the_limit_too(self):
        """The result says how stale it was."""
        push = Push("w0", 0)

        assert Async(3).policy().offer(push, 41) == Step((push,))

    def test_where_there_is_a_limit_a_push_has_to_say_its_version(self):
        """Else any could be passed off as fresh."""
        assert not Async().needs_version
        assert Async(3).needs_version

    def test_the_name_alone_is_enough(self):
        """It has no arguments that must be given, so `"async"` says all."""
        assert from_json("async") == Async()

    def test_leaving_makes_no_step(self):
        """Nobody waits, so nobody is let go."""
        policy = Async().policy(Standing({"w0": 0, "w1": 0}, 2))
        policy.leave("w0")

        assert policy.due() is None

    @pytest.mark.parametrize("limit", [-1, 1.5, "3", True, 2**40, [1]])
    def test_a_limit_that_cannot_be_is_refused(self, limit):
        """From Python and from JSON alike."""
        with pytest.raises(InvalidArgument, match="max_staleness"):
            Async(limit)
        with pytest.raises(InvalidArgument, match="max_staleness"):
            from_json({"mode": "async", "max_staleness": limit})

    def test_rejecting_without_a_limit_is_refused(self):
        """It would reject all or nothing."""
        with pytest.raises(InvalidArgument, match="max_staleness=4"):
            Async(on_stale="reject")

    @pytest.mark.parametrize("on_stale", ["", "drop", None, 1, ["reject"]])
    def test_what_cannot_happen_to_a_stale_push_is_refused(self, on_stale):
        """The error names what there is."""
        with pytest.raises(InvalidArgument, match="accept, reject, scale"):
            Async(on_stale=on_stale)
