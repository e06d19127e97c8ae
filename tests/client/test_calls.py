"""Tests of `stepwell.calls`: requests as data, and how answers are read. No I/O anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import stepwell
from stepwell import calls, checkpoint_calls
from stepwell.calls import Answer, Call
from stepwell.errors import (
    DtypeMismatch,
    InvalidArgument,
    InvalidInput,
    LayoutMismatch,
    ShapeMismatch,
    UnexpectedAnswer,
    UnknownTensor,
)
from stepwell_core.layout import Layout

from tests.client.flow_driver import header_of, payload_of, result

PARAMETERS = {"w": np.float32([[1, 2], [3, 4]]), "d": np.float64([0.5]), "b": np.float32([5, 6])}
LAYOUT = Layout.of(PARAMETERS)
HEADER = {"worker": "w0", "epoch": 1, "sequence": 0}


def push(gradients, pulls=False):
    """Return a push of `gradients`."""
    return calls.push("digits", LAYOUT, gradients, HEADER, pulls=pulls)


def test_a_full_push_names_no_tensors():
    """The layout says it all; the order of the mapping does not matter."""
    gradients = {name: PARAMETERS[name] for name in ("d", "b", "w")}

    call = push(gradients)

    header = header_of(call)
    assert (header["layout"], header["dtype"]) == (LAYOUT.hash, "native")
    assert "tensors" not in header
    assert HEADER.items() <= header.items()
    assert payload_of(call) == b"".join(PARAMETERS[name].tobytes() for name in ("w", "b", "d"))


@pytest.mark.parametrize("absent", [{}, {"w": None, "d": None}])
def test_missing_gradients_make_a_partial_push(absent):
    """Absent and None mean the same: the parameter is left alone."""
    call = push({"b": PARAMETERS["b"], **absent})

    assert header_of(call)["tensors"] == ["b"]
    assert payload_of(call) == PARAMETERS["b"].tobytes()


def test_gradients_of_one_other_dtype_are_sent_as_they_are():
    """float64 gradients of float32 parameters keep their digits."""
    gradients = {name: array.astype(np.float64) for name, array in PARAMETERS.items()}

    call = push(gradients)

    assert header_of(call)["dtype"] == "float64"
    assert len(payload_of(call)) == 8 * LAYOUT.size


def test_gradients_of_uint16_are_what_is_declared():
    """The header says it, and the bits travel as they are."""
    bits = {name: np.full(array.shape, 0x3F80, np.uint16) for name, array in PARAMETERS.items()}

    call = calls.push("digits", LAYOUT, bits, HEADER, pulls=False, dtype="bfloat16")

    assert header_of(call)["dtype"] == "bfloat16"
    assert payload_of(call) == b"\x80\x3f" * LAYOUT.size


def test_header_and_payload_lie_apart_until_the_call_is_sent():
    """Another transport may put the payload elsewhere and send the header alone."""
    call = push(PARAMETERS)

    assert call.header["layout"] == LAYOUT.hash
    assert b"".join(call.payload) == payload_of(call)
    assert all(
        np.shares_memory(np.frombuffer(view, "u1"), PARAMETERS[name])
        for view, name in zip(call.payload, ("w", "b", "d"), strict=True)
    )
    assert Call("GET", "/").body == []


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        ("/v1/m", {}, "/v1/m"),
        ("/v1/m", {"names": ["a/b", "c d"], "n": 1}, "/v1/m?names=a%2Fb&names=c%20d&n=1"),
        ("/v1/m", {"names": ["ä&=+%?#"]}, "/v1/m?names=%C3%A4%26%3D%2B%25%3F%23"),
        ("/v1/a b/ü?#%", {}, "/v1/a%20b/%C3%BC%3F%23%25"),
    ],
)
def test_path_and_query_are_quoted(path, query, expected):
    """No name can end the path, begin another value, or break the line of the request."""
    assert Call("GET", path, query).target == expected


def test_the_body_is_views_of_the_callers_arrays():
    """Nothing is joined or copied: what is written into the array later would be sent."""
    gradients = {name: array.copy() for name, array in PARAMETERS.items()}

    call = push(gradients)
    gradients["w"][0, 0] = 9

    assert np.frombuffer(payload_of(call), np.float32)[0] == 9


@pytest.mark.parametrize(
    ("gradients", "error"),
    [
        ({"unknown": np.zeros(2)}, UnknownTensor),
        ({"w": np.zeros((4, 1), np.float32)}, ShapeMismatch),
        ({"b": np.zeros(2, np.int32)}, DtypeMismatch),
        ({}, InvalidInput),
        ({"w": None}, InvalidInput),
        ([np.zeros(2)], InvalidArgument),
    ],
)
def test_gradients_that_do_not_fit_are_refused_here(gradients, error):
    """Nothing is sent, and no sequence number is used."""
    with pytest.raises(error):
        push(gradients)


@pytest.mark.parametrize("kind", ["average", 1, None])
def test_a_kind_that_is_none_is_refused_here(kind):
    """Those that are go into the header."""
    for known in ("gradient", "delta"):
        call = calls.push("m", LAYOUT, PARAMETERS, {**HEADER, "kind": known}, pulls=False)
        assert header_of(call)["kind"] == known

    with pytest.raises(InvalidArgument, match="a gradient or a delta"):
        calls.push("m", LAYOUT, PARAMETERS, {**HEADER, "kind": kind}, pulls=False)


def test_only_a_push_that_pulls_expects_parameters():
    """`?pull=true`, and the layout of what comes back."""
    assert push(PARAMETERS).query == {}
    assert push(PARAMETERS).layout is None
    assert push(PARAMETERS, pulls=True).query == {"pull": "true"}
    assert push(PARAMETERS, pulls=True).layout is LAYOUT


@pytest.mark.parametrize(
    ("names", "expected"),
    [(None, None), (["d", "w"], ["w", "d"]), ("w", ["w"]), (iter(["b"]), ["b"])],
)
def test_a_pull_may_be_of_some_tensors(names, expected):
    """A single name is a name, and not its letters."""
    call = calls.pull("digits", LAYOUT, names, "momentum")

    assert call.query.get("names") == expected
    assert call.query["slot"] == "momentum"


@pytest.mark.parametrize(("names", "error"), [([], InvalidInput), (["x"], UnknownTensor)])
def test_a_pull_of_nothing_is_refused_here(names, error):
    """Without this, a pull of no names would be a pull of everything."""
    with pytest.raises(error):
        calls.pull("digits", LAYOUT, names)


def test_a_partial_answer_has_the_layout_of_its_tensors():
    """The header behind a partial pull says which tensors come."""
    call = calls.pull("digits", LAYOUT)

    layout = calls.expected_payload(call, {"layout": LAYOUT.hash, "tensors": ["b"]})

    assert layout == LAYOUT.select(["b"])


@pytest.mark.parametrize("header", [{}, {"layout": "x"}])
def test_an_answer_without_tensors_expects_none(header):
    """A description of a model has a layout in it and no payload behind it."""
    call = Call("GET", "/v1/models/digits")

    assert calls.expected_payload(call, header) is None


@pytest.mark.parametrize("received", ["x" * 500, 3, None, ["x"]])
def test_an_answer_of_another_layout_is_told_apart(received):
    """The model was deleted and created anew with other tensors."""
    with pytest.raises(LayoutMismatch, match="Open it again"):
        calls.expected_payload(calls.pull("digits", LAYOUT), {"layout": received})


def test_parameters_are_views_of_the_received_arenas():
    """A pull allocates once."""
    arenas = LAYOUT.flatten(PARAMETERS)
    answer = Answer({"version": 3, "incarnation": "one", "loss_scale": 2.0}, LAYOUT.views(arenas))

    parameters = calls.parameters_of(answer)

    assert np.shares_memory(parameters["w"], arenas["float32"])
    assert parameters["d"].tolist() == [0.5]
    assert (parameters.version, parameters.incarnation, parameters.loss_scale) == (3, "one", 2.0)


def test_a_result_leaves_out_what_it_does_not_know():
    """A newer server may say more."""
    answer = Answer(result(staleness=2, fingerprint="new"))

    assert calls.result_of(answer) == stepwell.PushResult("applied", 1, 1, staleness=2)


@pytest.mark.parametrize(
    "read",
    [
        lambda: calls.result_of(Answer({"hello": "world"})),
        lambda: calls.result_of(Answer({"version": 1}, LAYOUT.views(LAYOUT.new_arenas()))),
        lambda: calls.parameters_of(Answer({"version": 1})),
        lambda: calls.parameters_of(Answer({}, LAYOUT.views(LAYOUT.new_arenas()))),
        lambda: checkpoint_calls.read_checkpoint({"id": "x"}),
        lambda: checkpoint_calls.read_checkpoint("x"),
        lambda: checkpoint_calls.read_checkpoint({"id": "x", "version": 1}),
        lambda: checkpoint_calls.read_progress({}),
        lambda: checkpoint_calls.read_progress({"progress": "half"}),
        lambda: calls.read_result(None),
        lambda: Answer({})["epoch"],
    ],
)
def test_an_answer_without_its_fields_is_not_of_a_stepwell_server(read):
    """Some other service on the port gives a sentence and no KeyError."""
    with pytest.raises(UnexpectedAnswer):
        read()
