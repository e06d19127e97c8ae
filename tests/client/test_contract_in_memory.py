"""Both clients keep their contract through shared memory, and tensors really go that way."""

from __future__ import annotations

import pytest
from stepwell.calls import Shares

from tests.client.contract import ClientContract
from tests.client.memory_witness import LosingConnections, witnessed

SHARES_NOTHING = {
    "test_a_model_begins_with_the_values_it_was_given": "no worker",
    "test_a_model_exists_once": "no worker",
    "test_a_model_that_differs_is_told": "no worker",
    "test_models_are_opened_listed_and_deleted_by_name": "no worker",
    "test_the_server_says_what_it_is": "no worker",
    "test_pulled_arrays_belong_to_the_caller": "no worker",
    "test_a_pull_may_go_into_arrays_or_a_callback": "no worker",
    "test_a_pull_may_be_of_half_width": "no worker",
    "test_a_token_decides_what_may_be_done": "its only push is refused",
    "test_a_mode_is_read_and_changed_while_the_model_lives": "no worker",
    "test_what_is_no_mode_is_refused_before_anything_is_sent": "no worker",
    "test_a_gradient_buffer_stays_readable_behind_its_worker": "nothing is pushed",
    "test_float64_gradients_of_a_float32_model_are_taken": "they are larger than the region",
}
"""Why these scenarios share nothing."""

PUSHES_NOTHING = {"test_parameters_trained_in_place_are_refused_and_nothing_is_pushed"}

USES_THE_WIRE_TOO = {
    "test_float64_gradients_of_a_float32_model_are_taken": "they are larger than the region",
    "test_a_restarted_server_is_not_noticed": "the new server says anew where its socket is",
    "test_pull_options_are_kept": "a push comes while a pull of the same worker waits",
}
"""Why these scenarios may send tensors."""


class InMemory(ClientContract):
    """The contract, in shared memory."""

    # What breaks a Unix socket holds nothing back that could arrive later.
    test_a_push_that_arrives_after_it_was_given_up_has_no_effect = None

    def losing(self, server):
        """Return what loses answers of the Unix socket."""
        return LosingConnections(server)

    @pytest.fixture(autouse=True)
    def witness(self, request):
        """See that tensors went through memory, and that none silently went over the wire."""
        with witnessed() as witness:
            yield witness
        name = request.node.originalname
        assert not witness.sent or name in USES_THE_WIRE_TOO
        assert bool(witness.shared) != (name in SHARES_NOTHING)
        assert Shares.GRADIENTS in witness.shared or name in {*SHARES_NOTHING, *PUSHES_NOTHING}


class TestClientInMemory(InMemory):
    """See `contract.py`."""

    kind = "Client"


class TestAsyncClientInMemory(InMemory):
    """See `contract.py`."""

    kind = "AsyncClient"
