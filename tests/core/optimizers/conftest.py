"""Gives the contract suite each subclass's own variants and golden cases."""

from __future__ import annotations

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each of `variants` and `golden_cases()` of the test's class."""
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", metafunc.cls.variants, ids=str)
    if "golden_case" in metafunc.fixturenames:
        cases = metafunc.cls.golden()["cases"]
        metafunc.parametrize("golden_case", cases, ids=range(len(cases)))
