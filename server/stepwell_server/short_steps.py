"""Which models' steps are so short that the event loop may make them itself; see `lane.py`."""

from __future__ import annotations

from stepwell_core.definition import Definition

SHORT_STEP_BYTES = 1 << 18
"""A gradient of so many bytes is read, and a step of Adam is made of it, in some 50 us."""

TENSOR_COST_BYTES = 1 << 10
"""What takes as long as one more tensor in Python's loops over them."""


def is_small(definition: Definition) -> bool:
    """Return whether a push takes some 100 us at most, the step of all that wait included."""
    layout, gradients = definition.layout, definition.consistency.most_in_step
    return gradients * (layout.nbytes + TENSOR_COST_BYTES * len(layout)) <= SHORT_STEP_BYTES
