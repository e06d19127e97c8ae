"""The check of what is timed: it lets Adam pass, and nothing that only looks like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import adam
from benchmarks.references.naive_http import Adam

SIZE = 1000


class Forgetful(Adam):
    def step(self, gradient: Any) -> None:
        super().step(gradient)
        self.momentum[:] = 0


class Half(Adam):
    def step(self, gradient: Any) -> None:
        super().step(np.where(np.arange(SIZE) < SIZE - 1, gradient, 0))


class Idle(Adam):
    def step(self, gradient: Any) -> None:
        pass


def checked(optimizer: Adam) -> None:
    """Check an optimizer."""
    gradient = adam.gradient(SIZE)
    adam.check(lambda: optimizer.step(gradient), lambda: optimizer.parameters, gradient)


def test_adam_passes() -> None:
    """Adam by the paper's formulas moves each parameter by the learning rate a step."""
    checked(Adam(adam.parameters(SIZE)))


@pytest.mark.parametrize("kind", [Idle, Forgetful, Half])
def test_who_does_not_make_the_step_is_found_out(kind: type[Adam]) -> None:
    """No step, no moments, one parameter left out."""
    with pytest.raises(AssertionError, match="Adam steps move each parameter"):
        checked(kind(adam.parameters(SIZE)))
