"""Tests of `stepwell.handles`: what can be known without a server."""

from __future__ import annotations

import numpy as np
import pytest
from stepwell.endpoint import Endpoint
from stepwell.errors import PushInFlight
from stepwell.flows import ModelFlows
from stepwell.handles import ModelHandle, WorkerHandle
from stepwell.retry import Patience, Timeout
from stepwell.shared_memory import SharedMemory
from stepwell_core.layout import Layout

from tests.client.flow_driver import Script, opened

LAYOUT = Layout.of({"w": np.zeros(3, np.float32)})
PATIENCE = Patience(Timeout())
FLOWS = ModelFlows("digits", LAYOUT, PATIENCE, {})
MEMORY = SharedMemory(Endpoint("http://localhost"), "digits", LAYOUT, "http")


def test_a_model_knows_its_name_and_its_tensors():
    """They never change, so nobody is asked."""
    model = ModelHandle(FLOWS)

    assert (model.name, model.layout) == ("digits", LAYOUT)
    assert repr(model).startswith("<ModelHandle 'digits': <Layout of 1 tensors, 12 bytes")


def test_a_worker_knows_its_session():
    """Name, version and loss scale are those of the last answer."""
    session = FLOWS.session("w0", None)
    worker = WorkerHandle(session, MEMORY)
    assert repr(worker) == "<WorkerHandle 'w0' of 'digits': not open>"

    Script(opened(epoch=7, loss_scale=2.0)).run(session.open())

    assert (worker.name, worker.version, worker.loss_scale) == ("w0", None, 2.0)
    assert repr(worker) == "<WorkerHandle 'w0' of 'digits': epoch 7>"


def test_a_delta_is_made_beside_no_other_push():
    """It is written where the gradient of that one may lie; afterwards there may be another."""
    session = FLOWS.session("w0", None)
    Script(opened()).run(session.open())
    worker = WorkerHandle(session, MEMORY)
    flow = session.push({"w": np.zeros(3, np.float32)})
    next(flow)

    with pytest.raises(PushInFlight, match="'w0'"), worker._making_delta():
        pass
    flow.close()

    with worker._making_delta(), pytest.raises(PushInFlight), worker._making_delta():
        pass
    with worker._making_delta():
        pass
