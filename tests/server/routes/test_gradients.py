"""The push: what it does, and all the ways in which it is refused with nothing changed."""

from __future__ import annotations

import http.client
import itertools
import select
import struct
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import ml_dtypes  # noqa: F401 - makes NumPy know bfloat16
import msgpack
import numpy as np
import pytest
from stepwell_core.layout import Layout, Tensor

from tests import servers
from tests.server.calls import (
    LAYOUT,
    MOMENTUM,
    MSGPACK,
    Worker,
    arrays_of,
    assert_problem,
    create,
    filled,
    image,
    packed,
    payload,
    pull,
    unpacked,
)


@pytest.fixture
def path(http):
    """A model of its own, with a slot."""
    return create(http, optimizer=MOMENTUM)


@pytest.fixture
def worker(http, path):
    """A worker of `path`."""
    return Worker(http, path)


def test_a_push_makes_exactly_one_step(http):
    """w - lr * g, in every tensor, and the version is one more."""
    path = create(http)

    result = Worker(http, path).push(2.0, version=0)

    assert result == {
        "outcome": "applied",
        "version": 1,
        "parameters_version": 1,
        "staleness": 0,
        "duplicate": False,
        "loss_scale": None,
    }
    for array in pull(http, path).values():
        assert (array == 0.0).all()


def test_a_push_in_json_is_the_same_push(http):
    """For people with curl: the same fields, the tensors as nested lists."""
    path = create(http)
    worker = Worker(http, path)
    gradients = {name: array.tolist() for name, array in filled(2.0).items()}

    answer = http.post(
        f"{path}/gradients", json={**worker.header(weight=1, version=0), "gradients": gradients}
    )

    assert answer.json()["outcome"] == "applied"
    for array in pull(http, path).values():
        assert (array == 0.0).all()


def test_a_result_comes_as_msgpack_to_who_asks_for_it(worker):
    """Accept decides, not what was sent."""
    answer = worker.send(packed(worker.header(), payload(filled(1.0))), accept=MSGPACK)

    assert answer.headers["content-type"] == MSGPACK
    assert unpacked(answer.content)[0]["version"] == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_push_that_pulls_gets_half_width_if_it_asks(http, dtype):
    """One round trip, half the bytes on the way back."""
    path = create(http)
    worker = Worker(http, path)

    answer = worker.send(
        packed(worker.header(), payload(filled(1.0))), MSGPACK,
        query={"pull": True, "dtype": dtype},
    )  # fmt: skip

    header, body = unpacked(answer.content)
    assert (header["result"]["outcome"], header["dtype"]) == ("applied", dtype)
    assert body == payload({name: array.astype(dtype) for name, array in filled(0.5).items()})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_gradient_comes_in_any_dtype_for_all_tensors(http, dtype):
    """It is converted while it is applied."""
    path = create(http)
    worker = Worker(http, path)
    body = payload({name: array.astype(dtype) for name, array in filled(2.0).items()})

    answer = worker.send(packed(worker.header(dtype=dtype), body))

    assert answer.json()["outcome"] == "applied"
    for array in pull(http, path).values():
        assert (array == 0.0).all()


def test_a_partial_push_touches_only_its_tensors(http):
    """The others keep their bytes."""
    path = create(http)
    worker = Worker(http, path)

    worker.push({"bias": np.ones(4)}, tensors=["bias"])

    pulled = pull(http, path)
    assert (pulled["bias"] == 0.5).all()
    assert (pulled["dense/kernel"] == 1.0).all()


@pytest.mark.parametrize("accept", ["application/json", MSGPACK])
def test_a_push_can_be_answered_with_the_new_parameters(http, accept):
    """One round trip; the result is in the answer too, in both formats."""
    path = create(http)
    worker = Worker(http, path)
    body = packed(worker.header(), payload(filled(2.0)))

    answer = worker.send(body, accept=accept, query={"pull": "true"})

    fields = answer.json() if accept != MSGPACK else unpacked(answer.content)[0]
    assert fields["result"]["outcome"] == "applied"
    assert fields["version"] == 1
    if accept == MSGPACK:
        for array in arrays_of(unpacked(answer.content)[1]).values():
            assert (array == 0.0).all()
    else:
        assert fields["parameters"]["bias"] == [0.0] * 4


def test_a_push_whose_answer_would_be_of_no_accepted_type_has_no_effect(http, path, worker):
    """406 comes before the step and not after it."""
    before = image(http, path)
    body = packed(worker.header(), payload(filled(1.0)))

    answer = worker.send(body, accept="image/png", query={"pull": "true"})

    assert_problem(answer, 406, "not_acceptable")
    assert image(http, path) == before


def test_a_repeated_push_is_answered_as_the_first_was_and_changes_nothing(http, path, worker):
    """Exactly once, however often it is sent."""
    first = worker.try_push(2.0).json()
    before = image(http, path)

    again = [worker.try_push(2.0).json() for _ in range(3)]

    assert again == [{**first, "duplicate": True}] * 3
    assert image(http, path) == before


def test_a_push_that_skips_a_sequence_number_is_refused(http, path, worker):
    """The answer says which one is due."""
    before = image(http, path)

    answer = worker.try_push(sequence=1)

    assert assert_problem(answer, 409, "sequence_gap")["expected"] == 0
    assert image(http, path) == before


def test_a_session_is_fenced_by_a_newer_one_of_the_same_worker(http, path, worker):
    """An old process cannot push any more, the new one can."""
    newer = Worker(http, path)
    before = image(http, path)

    answer = worker.try_push()

    assert assert_problem(answer, 409, "fenced")["epoch"] == newer.epoch
    assert image(http, path) == before
    assert newer.push()["outcome"] == "applied"


def test_a_session_that_never_was_and_one_that_was_closed_are_refused(http, path, worker):
    """Both are told to open one, with different codes."""
    assert_problem(worker.try_push(worker="nobody"), 409, "unknown_session")
    assert_problem(worker.try_push(epoch=worker.epoch + 1), 409, "unknown_session")
    http.delete(f"{path}/workers/w0")

    assert_problem(worker.try_push(), 409, "session_expired")


def test_a_push_to_an_older_incarnation_is_refused_with_the_new_one(http, path, worker):
    """After an overwrite nobody's gradient is applied to parameters that it was not made for."""
    worker.push()
    body = packed({"layout": LAYOUT.hash}, payload(filled(0.0)))
    cut = http.put(f"{path}/parameters", content=body, headers={"Content-Type": MSGPACK}).json()
    before = image(http, path)

    document = assert_problem(worker.try_push(), 409, "stale_incarnation")

    assert document["incarnation"] == cut["incarnation"] != worker.incarnation
    assert document["last_sequence"] == 0
    assert image(http, path) == before


HEADERS = {
    "an unknown tensor": ({"tensors": ["nobody"]}, "unknown_tensor"),
    "a tensor twice": ({"tensors": ["bias", "bias"]}, "invalid_input"),
    "no tensor": ({"tensors": []}, "invalid_input"),
    "the layout of another model": ({"layout": "0" * 32}, "layout_mismatch"),
    "no layout": ({"layout": None}, "layout_mismatch"),
    "a dtype that is none": ({"dtype": "int8"}, "invalid_input"),
    "another dtype than was sent": ({"dtype": "float16"}, "payload_size_mismatch"),
    "fewer tensors than were sent": ({"tensors": ["bias"]}, "payload_size_mismatch"),
    "weight 0": ({"weight": 0.0}, "invalid_input"),
    "a negative weight": ({"weight": -1.0}, "invalid_input"),
    "weight NaN": ({"weight": float("nan")}, "invalid_input"),
    "weight infinity": ({"weight": float("inf")}, "invalid_input"),
    "a weight that float32 cannot hold": ({"weight": 1e300}, "invalid_input"),
    "loss scale 0": ({"loss_scale": 0.0}, "invalid_input"),
    "a version of the future": ({"version": 7}, "invalid_input"),
    "a negative version": ({"version": -1}, "invalid_input"),
    "a version that is no number": ({"version": True}, "invalid_input"),
    "a negative sequence": ({"sequence": -1}, "invalid_input"),
    "a huge sequence": ({"sequence": 1 << 63}, "invalid_input"),
    "a worker that is a path": ({"worker": "../../etc"}, "invalid_input"),
    "a worker with a line break": ({"worker": "w0\n"}, "invalid_input"),
    "a long worker": ({"worker": "w" * 65}, "invalid_input"),
    "a long incarnation": ({"incarnation": "0" * 65}, "invalid_input"),
    "a field that is none": ({"priority": 1}, "invalid_input"),
    "a hyperparameter nobody declared": ({"hyperparameters": {"beta_1": 0.5}}, "invalid_input"),
    "a hyperparameter NaN": ({"hyperparameters": {"beta_1": float("nan")}}, "invalid_input"),
    "a kind that is none": ({"kind": "average"}, "invalid_input"),
    "a kind that is no text": ({"kind": 1}, "invalid_input"),
    "another protocol": ({"protocol": 2}, "invalid_input"),
    "a text as epoch": ({"epoch": "1"}, "invalid_input"),
}


@pytest.mark.parametrize(("fields", "code"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_breaks_a_rule_is_422_and_nothing_changes(http, path, worker, fields, code):
    """The sequence number is free again: the same push, put right, is the first."""
    before = image(http, path)

    answer = worker.try_push(**fields)

    assert_problem(answer, 422, code)
    assert image(http, path) == before
    assert worker.push() == worker.push() | {"version": 1, "parameters_version": 1}


SIZE = len(payload(filled(0.0)))
BODIES = {
    "empty": (b"", 400, "malformed_message"),
    "not a map": (b"\x93\x01\x02\x03", 400, "malformed_message"),
    "half a header": (packed({"worker": "w" * 100})[:50], 400, "malformed_message"),
    "never used": (b"\xc1", 400, "malformed_message"),
    "number keys": (msgpack.packb({1: 2}), 400, "malformed_message"),
    "an extension": (msgpack.packb({"a": msgpack.ExtType(1, b"x")}), 400, "malformed_message"),
    "a timestamp": (msgpack.packb({"a": msgpack.Timestamp(1)}), 400, "malformed_message"),
    "a promised array": (b"\xdd\xff\xff\xff\xff", 400, "malformed_message"),
    "a promised map": (b"\xdf\xff\xff\xff\xff", 400, "malformed_message"),
    "a promised map of maps": (b"\xdf\xff\xff\xff\xff" * 1000, 400, "malformed_message"),
    "a promised text": (b"\x81\xa1a\xdb\xff\xff\xff\xff", 400, "malformed_message"),
    "a deep list": (b"\x81\xa1a" + b"\x91" * 100_000 + b"\x01", 400, "malformed_message"),
    "a large header": (msgpack.packb({"a": "x" * 300_000}), 400, "malformed_message"),
    "bytes in the header": (msgpack.packb({"a": b"x"}), 400, "malformed_message"),
    "JSON": (b'{"worker": "w0"}', 400, "malformed_message"),
}


@pytest.mark.parametrize(("body", "status", "code"), BODIES.values(), ids=BODIES)
def test_a_hostile_message_is_refused_and_nothing_changes(http, path, worker, body, status, code):
    """Whatever the bytes are, the answer is a problem and the server goes on."""
    before = image(http, path)

    answer = worker.send(body)

    assert_problem(answer, status, code)
    assert image(http, path) == before


PAYLOADS = {
    "none": ((), 422, "payload_size_mismatch"),
    "a byte short": ((b"\0" * (SIZE - 1),), 422, "payload_size_mismatch"),
    "a byte long": ((b"\0" * (SIZE + 1),), 422, "payload_size_mismatch"),
    "long by a second bin": ((b"\0" * SIZE, b"\0"), 422, "payload_size_mismatch"),
    "a text instead": (("x" * SIZE,), 400, "malformed_message"),
    "a number behind it": ((b"\0" * SIZE, 1), 400, "malformed_message"),
}


@pytest.mark.parametrize(("bins", "status", "code"), PAYLOADS.values(), ids=PAYLOADS)
def test_a_payload_of_another_size_is_refused_and_nothing_changes(
    http, path, worker, bins, status, code
):
    """Checked against the layout, before anything is applied."""
    before = image(http, path)

    answer = worker.send(packed(worker.header(), *bins))

    assert_problem(answer, status, code)
    assert image(http, path) == before


def test_a_bin_that_promises_gigabytes_is_refused_at_its_length(worker):
    """Nothing is allocated for a promise."""
    body = packed(worker.header()) + struct.pack(">BI", 0xC6, (1 << 32) - 1) + b"\0" * 100

    document = assert_problem(worker.send(body), 422, "payload_size_mismatch")

    assert document["received"] == (1 << 32) - 1
    assert document["expected"] == SIZE


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tensor", ["dense/kernel", "bias"])
def test_a_gradient_that_is_not_finite_is_rejected_and_nothing_changes(
    http, path, worker, tensor, value
):
    """One element is enough; the message does not show it."""
    gradients = filled(1.0)
    gradients[tensor].flat[-1] = value
    before = image(http, path)

    answer = worker.try_push(gradients)

    assert_problem(answer, 422, "nonfinite_gradient")
    assert image(http, path) == before


def test_a_model_may_drop_gradients_that_are_not_finite(http):
    """The sequence number is used up, and no version made."""
    path = create(http, on_nonfinite="drop")

    result = Worker(http, path).push(float("nan"))

    assert (result["outcome"], result["version"]) == ("skipped_nonfinite", 0)
    assert (pull(http, path)["bias"] == 1.0).all()


def test_a_model_may_allow_gradients_that_are_not_finite(http):
    """Then it has what it asked for; JSON shows null."""
    path = create(http, on_nonfinite="allow")

    assert Worker(http, path).push(float("nan"))["outcome"] == "applied"
    assert http.get(f"{path}/parameters/bias").json()["parameters"]["bias"] == [None] * 4


JSON_GRADIENTS = {
    "none": (None, "layout_mismatch"),
    "an empty object": ({}, "layout_mismatch"),
    "a list": ([1, 2], "layout_mismatch"),
    "an unknown tensor": ({"nobody": [1]}, "unknown_tensor"),
    "another shape": ({"bias": [1, 2, 3]}, "shape_mismatch"),
    "rows of different lengths": (
        {"dense/kernel": [[1, 2, 3, 4], [1, 2], [1]]},
        "shape_mismatch",
    ),
    "a number instead of a row": ({"dense/kernel": [[1, 2, 3, 4], 5, 6]}, "shape_mismatch"),
    "a scalar": ({"bias": 1.0}, "shape_mismatch"),
    "deep lists": ({"bias": [[[[1.0]]]] * 4}, "shape_mismatch"),
    "texts": ({"bias": ["1", "2", "3", "4"]}, "dtype_mismatch"),
    "truth values": ({"bias": [True] * 4}, "dtype_mismatch"),
    "objects": ({"bias": [{}] * 4}, "dtype_mismatch"),
    "a number too large": ({"bias": [10**400] * 4}, "invalid_input"),
    "null, which is NaN": ({"bias": [None] * 4}, "nonfinite_gradient"),
    "infinite as float32": ({"dense/kernel": [[1e39] * 4] * 3}, "nonfinite_gradient"),
}


@pytest.mark.parametrize(("gradients", "code"), JSON_GRADIENTS.values(), ids=JSON_GRADIENTS)
def test_json_gradients_that_do_not_fit_are_422_and_nothing_changes(
    http, path, worker, gradients, code
):
    """The same rules as for msgpack, and those of nested lists."""
    before = image(http, path)

    answer = http.post(f"{path}/gradients", json={**worker.header(), "gradients": gradients})

    assert_problem(answer, 422, code)
    assert image(http, path) == before


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}"]
)
def test_what_is_not_a_json_object_is_400(worker, body):
    """Also what makes a parser recurse or count for ever."""
    answer = worker.send(body, content_type="application/json")

    assert_problem(answer, 400, "malformed_message")


def test_json_says_by_its_tensors_what_it_holds(http, path, worker):
    """`dtype` and `tensors` belong to a msgpack payload; a layout that is given is checked."""
    gradients = {"bias": [1.0] * 4}
    for fields, code in (
        ({"dtype": "float16"}, "invalid_input"),
        ({"tensors": ["bias"]}, "invalid_input"),
        ({"layout": "another"}, "layout_mismatch"),
    ):
        body = {**worker.header(), "gradients": gradients, **fields}
        assert_problem(http.post(f"{path}/gradients", json=body), 422, code)


def test_a_push_to_a_model_that_does_not_exist_is_404(http, worker):
    """And a name that cannot be one is 422, before anything is looked up."""
    worker.path = "/v1/models/nobody"
    assert_problem(worker.try_push(), 404, "model_not_found")
    worker.path = "/v1/models/..%2Fetc"
    assert worker.try_push().status_code in (404, 422)
    worker.path = "/v1/models/UPPER"
    assert_problem(worker.try_push(), 422, "invalid_name")


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A client of a server with low limits."""
    settings = {"max_body_bytes": 100_000, "max_json_bytes": 2_000}
    with (
        servers.hosted(tmp_path_factory.mktemp("strict"), **settings) as server,
        servers.http(server.url) as client,
    ):
        yield client


def test_a_body_over_the_limit_is_413_before_it_is_read(strict):
    """By its Content-Length; nothing changes, and the connection's server goes on."""
    path = create(strict)
    worker = Worker(strict, path)
    before = image(strict, path)

    answer = worker.send(packed(worker.header(), b"\0" * 200_000))

    assert assert_problem(answer, 413, "body_too_large")["limit"] == 100_000
    assert image(strict, path) == before


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_json_body_over_its_own_limit_is_413(strict, is_chunked):
    """Counted while it comes, so that an endless one ends there."""
    path = create(strict)
    body = b'{"gradients": {"bias": [' + b"1," * 2_000 + b"1]}}"
    pieces = (body[i : i + 100] for i in range(0, len(body), 100))

    answer = strict.post(
        f"{path}/gradients",
        content=pieces if is_chunked else body,
        headers={"Content-Type": "application/json"},
    )

    assert assert_problem(answer, 413, "body_too_large")["limit"] == 2_000


def test_endless_chunks_are_answered_where_the_payload_should_end(http, server, path, worker):
    """Without a Content-Length the layout is the limit, whether the body ends or not."""
    before = image(http, path)
    connection = http_connection(urlsplit(server.url))
    connection.putrequest("POST", f"{path}/gradients")
    connection.putheader("Content-Type", MSGPACK)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    bins = itertools.repeat(msgpack.packb(b"\0" * 64))
    for chunk in itertools.chain([packed(worker.header())], bins):
        connection.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        if select.select([connection.sock], [], [], 0)[0]:
            break

    answer = connection.getresponse()

    assert answer.status == 422
    assert b"payload_size_mismatch" in answer.read()
    connection.close()
    assert image(http, path) == before


def test_a_body_shorter_than_its_content_length_has_no_effect(http, server, path, worker):
    """A worker that is killed in the middle of its push has not pushed."""
    before = image(http, path)
    parts = urlsplit(server.url)
    connection = http_connection(parts)
    body = packed(worker.header(), payload(filled(1.0)))
    connection.putrequest("POST", f"{path}/gradients")
    connection.putheader("Content-Type", MSGPACK)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    connection.send(body[:-1])

    connection.close()

    assert image(http, path) == before
    assert worker.push()["version"] == 1


def test_a_body_longer_than_its_content_length_has_no_effect(http, server, path, worker):
    """It is cut there, and the rest would be a request of its own, which it is not."""
    before = image(http, path)
    connection = http_connection(urlsplit(server.url))
    body = packed(worker.header(), payload(filled(1.0)))
    connection.putrequest("POST", f"{path}/gradients")
    connection.putheader("Content-Type", MSGPACK)
    connection.putheader("Content-Length", str(len(body) - 1))
    connection.endheaders()
    connection.send(body)

    answer = connection.getresponse()

    assert answer.status in (400, 422)
    connection.close()
    assert image(http, path) == before


def http_connection(parts) -> http.client.HTTPConnection:
    """Return a connection whose requests may be wrong."""
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=servers.DEADLINE_S)


def test_pushes_of_many_workers_at_once_are_each_applied_once(http, server):
    """Nothing is lost and nothing is applied twice: the parameters count the pushes."""
    layout = Layout([Tensor("w", (1000,), "float32")])
    path = create(http, layout=layout, values=filled(0.0, layout))

    def run(name):
        with servers.http(server.url) as client:
            worker = Worker(client, path, name, layout)
            return [worker.push(-2.0)["version"] for _ in range(25)]

    with ThreadPoolExecutor(4) as pool:
        versions = [v for run in pool.map(run, ["a", "b", "c", "d"]) for v in run]

    assert sorted(versions) == list(range(1, 101))
    assert (pull(http, path, layout)["w"] == 100.0).all()


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_literals_that_json_has_not_are_refused(http, literal):
    """Python reads them as numbers, other languages do not: `null` stands for NaN."""
    path = create(http)
    body = f'{{"worker": "w", "gradients": {{"w": [{literal}]}}}}'

    answer = http.post(
        f"{path}/gradients", content=body, headers={"Content-Type": "application/json"}
    )

    assert_problem(answer, 400, "malformed_message")


def test_a_push_of_a_stranger_is_refused_before_its_gradient_is_read(http):
    """No memory is taken for a session that does not exist."""
    path = create(http)
    header = {"worker": "stranger", "epoch": 7, "sequence": 0, "layout": LAYOUT.hash}
    header["incarnation"] = http.get(path).json()["incarnation"]

    answer = http.post(
        f"{path}/gradients", content=packed(header), headers={"Content-Type": MSGPACK}
    )

    assert_problem(answer, 409, "unknown_session")  # and not that the payload is too short
