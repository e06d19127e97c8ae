"""The consistency mode of a model."""

import pytest

from tests.server.calls import create


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        (None, {"mode": "async"}),
        ("async", {"mode": "async"}),
        ({"mode": "async"}, {"mode": "async"}),
        (
            {"mode": "sync", "workers": 3},
            {"mode": "sync", "workers": 3, "reduction": "order"},
        ),
        (
            {"mode": "sync", "workers": 3, "reduction": "arrival"},
            {"mode": "sync", "workers": 3, "reduction": "arrival"},
        ),
    ],
)
def test_the_mode_is_the_one_that_was_asked_for(http, given, mode):
    """Asynchronous unless told otherwise."""
    path = create(http, consistency=given)

    assert http.get(f"{path}/consistency").json() == mode
