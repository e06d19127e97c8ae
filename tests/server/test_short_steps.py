"""Which steps may stop the event loop for as long as they take."""

from __future__ import annotations

import pytest
from stepwell_core.consistency import Async, Sync
from stepwell_core.definition import Definition
from stepwell_core.layout import Layout, Tensor
from stepwell_core.optimizers import SGD
from stepwell_server.short_steps import is_small


@pytest.mark.parametrize(
    ("elements", "tensors", "consistency", "expected"),
    [
        (1024, 1, Async(), True),
        (1 << 16, 1, Async(), False),
        (1, 1 << 12, Async(), False),
        (1024, 1, Sync(4), True),
        (1024, 1, Sync(100), False),
    ],
)
def test_a_step_is_short_by_its_bytes_its_tensors_and_its_gradients(
    elements, tensors, consistency, expected
):
    """Only then it may run on the event loop, where everybody waits for it."""
    layout = Layout(Tensor(f"w{number}", (elements,), "float32") for number in range(tensors))

    assert is_small(Definition("m", layout, SGD(), consistency=consistency)) is expected
