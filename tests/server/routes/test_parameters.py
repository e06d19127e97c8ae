"""Parameters: pulled whole or in part, in four formats; overwritten; finalized."""

from __future__ import annotations

import io
import tempfile

import ml_dtypes  # noqa: F401 - makes NumPy know bfloat16
import numpy as np
import pytest
from safetensors import deserialize, safe_open
from safetensors.numpy import load
from stepwell_core.layout import Layout, Tensor
from stepwell_server import representations

from tests.server.calls import (
    LAYOUT,
    MOMENTUM,
    MSGPACK,
    SGD,
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

SAFETENSORS, NPZ = representations.SAFETENSORS, representations.NPZ
EMA = {"class_name": "SGD", "config": {"learning_rate": 1.0, "use_ema": True, "ema_momentum": 0.5}}


def values() -> dict[str, np.ndarray]:
    """Return random tensors, always the same."""
    rng = np.random.default_rng(7)
    return {t.name: rng.standard_normal(t.shape).astype(t.dtype) for t in LAYOUT.tensors}


@pytest.fixture
def path(http):
    """A model with random parameters and a slot."""
    return create(http, values=values(), optimizer=MOMENTUM)


def get(http, path, accept, **query):
    """Return the answer to a pull."""
    return http.get(f"{path}/parameters", headers={"Accept": accept}, params=query)


def tensors_in(answer) -> dict[str, np.ndarray]:
    """Return the tensors of an answer in any of the four formats, read by their own libraries."""
    media_type = answer.headers["content-type"]
    if media_type == MSGPACK:
        header, body = unpacked(answer.content)
        names = header["tensors"]
        selection = LAYOUT if names is None else LAYOUT.select(names)
        return arrays_of(body, selection)
    if media_type == SAFETENSORS:
        return load(answer.content)
    if media_type == NPZ:
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as arrays:
            return dict(arrays)
    parameters = answer.json()["parameters"]
    return {
        name: np.array(value, LAYOUT.segments[name].tensor.dtype)
        for name, value in parameters.items()
    }


def assert_equal_arrays(found, expected):
    """Compare names, shapes, dtypes and every bit."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("accept", representations.MEDIA_TYPES)
def test_the_parameters_come_bit_by_bit_in_every_format(http, path, accept):
    """Also as JSON: Python's shortest decimal reads back as the same number."""
    answer = get(http, path, accept)

    assert answer.headers["content-type"] == accept
    assert_equal_arrays(tensors_in(answer), values())


@pytest.mark.parametrize("accept", representations.MEDIA_TYPES)
def test_some_tensors_come_alone(http, path, accept):
    """`names`, repeated, or a path; the version is said beside them."""
    several = get(http, path, accept, names=["bias"])
    single = http.get(f"{path}/parameters/dense/kernel", headers={"Accept": accept})

    assert_equal_arrays(tensors_in(several), {"bias": values()["bias"]})
    assert_equal_arrays(tensors_in(single), {"dense/kernel": values()["dense/kernel"]})


@pytest.mark.parametrize("accept", representations.MEDIA_TYPES)
def test_a_slot_comes_like_parameters(http, path, accept):
    """And a part of one too."""
    Worker(http, path).push(2.0)

    whole = get(http, path, accept, slot="momentum")
    part = get(http, path, accept, slot="momentum", names=["bias"])

    assert_equal_arrays(tensors_in(whole), filled(-1.0))
    assert_equal_arrays(tensors_in(part), {"bias": filled(-1.0)["bias"]})


def test_a_file_says_which_version_it_is(http, path):
    """Safetensors has room for it; JSON and msgpack say it in their fields."""
    incarnation = http.get(path).json()["incarnation"]
    Worker(http, path).push()

    header = unpacked(get(http, path, MSGPACK).content)[0]
    fields = get(http, path, "application/json").json()
    notes = notes_of(get(http, path, SAFETENSORS).content)

    assert (header["version"], header["incarnation"]) == (1, incarnation)
    assert (fields["version"], fields["incarnation"]) == (1, incarnation)
    assert (notes["version"], notes["incarnation"]) == ("1", incarnation)


def notes_of(content: bytes) -> dict[str, str]:
    """Return the notes in a safetensors file, which only a file on disk is opened for."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        with safe_open(file.name, "numpy") as opened:
            return opened.metadata()


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"names": ["nobody"]}, "unknown_tensor"),
        ({"names": ["bias", "bias"]}, "invalid_input"),
        ({"names": [""]}, "unknown_tensor"),
        ({"slot": "velocity"}, "invalid_input"),
        ({"slot": "../momentum"}, "invalid_input"),
    ],
)
def test_what_the_model_does_not_have_is_422(http, path, query, code):
    """With what it has."""
    assert_problem(get(http, path, "*/*", **query), 422, code)


def test_an_unchanged_version_is_not_sent_again(http, path):
    """ETag and If-None-Match; a list of tags and a weak one are understood too."""
    tag = get(http, path, MSGPACK).headers["etag"]

    for named in (tag, f'"x", W/{tag}', "*"):
        answer = http.get(f"{path}/parameters", headers={"Accept": MSGPACK, "If-None-Match": named})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag


def test_an_etag_differs_by_version_names_and_media_type(http, path):
    """No cache can take one representation for another."""
    before = {
        get(http, path, MSGPACK).headers["etag"],
        get(http, path, NPZ).headers["etag"],
        get(http, path, MSGPACK, names=["bias"]).headers["etag"],
        get(http, path, MSGPACK, names=["dense/kernel"]).headers["etag"],
    }
    Worker(http, path).push()
    after = get(http, path, MSGPACK)

    assert len(before) == 4
    assert after.headers["etag"] not in before
    assert after.headers["vary"] == "Accept, Authorization"


def test_an_etag_of_a_deleted_model_means_nothing_to_a_new_one_of_its_name(http):
    """The same bytes at the same version, but another history."""
    path = create(http, "phoenix")
    tag = get(http, path, MSGPACK).headers["etag"]
    http.delete(path)
    create(http, "phoenix")

    answer = http.get(f"{path}/parameters", headers={"Accept": MSGPACK, "If-None-Match": tag})

    assert answer.status_code == 200


@pytest.mark.parametrize("accept", ["image/png", "text/html", "application/x-npz;q=1"])
def test_a_format_that_we_do_not_have_is_406(http, path, accept):
    """The answer lists those that there are."""
    document = assert_problem(get(http, path, accept), 406, "not_acceptable")

    assert set(document["media_types"]) == set(representations.MEDIA_TYPES)


def test_who_takes_anything_gets_json_of_a_small_model_and_msgpack_of_a_large_one(http, path):
    """A person with curl sees numbers, and no terminal sees megabytes of them."""
    large = Layout([Tensor("w", (representations.MAX_DEFAULT_JSON_ELEMENTS + 1,), "float32")])
    large_path = create(http, layout=large, values=filled(0.0, large))

    assert get(http, path, "*/*").headers["content-type"] == "application/json"
    assert get(http, path, "text/html, */*;q=0.8").headers["content-type"] == "application/json"
    assert get(http, large_path, "*/*").headers["content-type"] == MSGPACK


def test_a_large_model_is_never_made_into_json(http):
    """It would cost the server sixty times its elements; parts of it are given."""
    layout = Layout(
        [
            Tensor("w", (representations.MAX_JSON_ELEMENTS,), "float32"),
            Tensor("b", (1,), "float32"),
        ]
    )
    path = create(http, layout=layout, values=filled(0.0, layout))

    assert_problem(get(http, path, "application/json"), 406, "not_acceptable")
    assert get(http, path, "application/json", names=["b"]).json()["parameters"] == {"b": [0.0]}
    both = get(http, path, f"application/json, {NPZ}")
    assert both.headers["content-type"] == NPZ


def test_overwriting_begins_a_new_history_and_is_durable(http, path):
    """Parameters are the new ones, slots stay, and there is a checkpoint of it."""
    Worker(http, path).push(2.0)
    before = http.get(path).json()
    body = packed({"layout": LAYOUT.hash}, payload(filled(3.0)))

    cut = http.put(f"{path}/parameters", content=body, headers={"Content-Type": MSGPACK}).json()

    assert_equal_arrays(pull(http, path), filled(3.0))
    assert cut["version"] == before["version"] + 1
    assert cut["incarnation"] != before["incarnation"]
    assert_equal_arrays(tensors_in(get(http, path, MSGPACK, slot="momentum")), filled(-1.0))
    newest = http.get(f"{path}/checkpoints").json()["checkpoints"][-1]
    assert newest["incarnation"] == cut["incarnation"]


def test_parameters_are_overwritten_in_json_too(http, path):
    """Nested lists under `parameters`."""
    lists = {name: array.tolist() for name, array in filled(3.0).items()}

    answer = http.put(f"{path}/parameters", json={"parameters": lists})

    assert answer.status_code == 200
    assert_equal_arrays(pull(http, path), filled(3.0))


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"parameters": {"bias": [0, 0, 0, 0]}}, "layout_mismatch"),
        ({"parameters": {}}, "layout_mismatch"),
        ({}, "layout_mismatch"),
        ({"parameters": {"bias": [0]}}, "shape_mismatch"),
        ({"parameters": {"bias": [0] * 4}, "layout": "other"}, "layout_mismatch"),
        ({"parameters": {"bias": [0] * 4}, "protocol": 2}, "invalid_input"),
        ({"parameters": {"bias": [0] * 4}, "force": True}, "invalid_input"),
    ],
)
def test_an_overwrite_that_does_not_fit_changes_nothing(http, path, fields, code):
    """All tensors or none."""
    before = image(http, path)

    answer = http.put(f"{path}/parameters", json=fields)

    assert_problem(answer, 422, code)
    assert image(http, path) == before


@pytest.mark.parametrize(
    ("header", "bins", "code"),
    [
        ({"layout": "0" * 32}, [b"\0" * 80], "layout_mismatch"),
        ({}, [b"\0" * 80], "layout_mismatch"),
        ({"layout": LAYOUT.hash}, [b"\0" * 79], "payload_size_mismatch"),
        ({"layout": LAYOUT.hash, "protocol": 2}, [b"\0" * 80], "invalid_input"),
    ],
)
def test_a_msgpack_overwrite_that_does_not_fit_changes_nothing(http, path, header, bins, code):
    """The same for a stream."""
    before = image(http, path)

    answer = http.put(
        f"{path}/parameters", content=packed(header, *bins), headers={"Content-Type": MSGPACK}
    )

    assert_problem(answer, 422, code)
    assert image(http, path) == before


def test_finalizing_writes_the_moving_average_into_the_parameters(http):
    """It is a change of its own, with a version."""
    path = create(http, values=filled(0.0), optimizer=EMA)
    Worker(http, path).push(-2.0)

    answer = http.post(f"{path}/finalize")

    assert answer.json() == {"version": 2, "parameters_version": 2}
    average = tensors_in(get(http, path, MSGPACK, slot="average"))
    assert_equal_arrays(pull(http, path), average)


def test_finalizing_before_the_first_push_is_refused(http):
    """The average would be all zeros."""
    path = create(http, optimizer=EMA)
    before = image(http, path)

    assert_problem(http.post(f"{path}/finalize"), 409, "nothing_to_finalize")
    assert image(http, path) == before


def test_finalizing_without_a_moving_average_changes_no_parameter(http):
    """As in Keras: allowed, and without effect on the bytes."""
    path = create(http, optimizer=SGD)

    answer = http.post(f"{path}/finalize")

    assert answer.json() == {"version": 1, "parameters_version": 0}
    assert_equal_arrays(pull(http, path), filled(1.0))


def test_npz_keeps_tensors_with_the_names_of_numpys_own_arguments(http):
    """`np.savez` would take `file` and `allow_pickle` for itself."""
    layout = Layout(Tensor(name, (2,), "float32") for name in ("file", "allow_pickle", "w"))
    path = create(http, layout=layout)

    answer = get(http, path, NPZ)

    with np.load(io.BytesIO(answer.content)) as archive:
        found = {name: archive[name].tolist() for name in archive}
    assert found == {name: [1.0, 1.0] for name in layout.names}


# Half width


def halves(dtype: str) -> dict[str, np.ndarray]:
    """Return what the parameters are in half width, by the libraries' own rounding."""
    return {name: array.astype(dtype) for name, array in values().items()}


@pytest.mark.parametrize("names", [None, ["bias"], ["dense/kernel"]], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parameters_come_in_half_width(http, path, dtype, names):
    """Rounded once, float32 tensors before float64 ones as ever; the header says which format."""
    query = {} if names is None else {"names": names}
    selection = LAYOUT if names is None else LAYOUT.select(names)

    answer = get(http, path, MSGPACK, dtype=dtype, **query)

    header, body = unpacked(answer.content)
    assert (header["dtype"], header["tensors"]) == (dtype, names)
    assert body == payload({name: halves(dtype)[name] for name in selection.names})


def test_a_pull_says_native_where_nothing_was_asked_for(http, path):
    """So a reader need not know what it asked for."""
    assert unpacked(get(http, path, MSGPACK).content)[0]["dtype"] == "native"


def test_a_single_tensor_and_a_slot_come_in_half_width_too(http, path):
    """Wherever there are tensors to pull."""
    Worker(http, path).push(2.0)

    single = http.get(f"{path}/parameters/bias?dtype=float16", headers={"Accept": MSGPACK})
    slot = get(http, path, MSGPACK, slot="momentum", dtype="bfloat16", names=["bias"])

    parameters = {"bias": values()["bias"] - 1.0}
    assert unpacked(single.content)[1] == payload({"bias": parameters["bias"].astype("float16")})
    header, body = unpacked(slot.content)
    assert (header["slot"], header["dtype"]) == ("momentum", "bfloat16")
    assert body == payload({"bias": filled(-1.0)["bias"].astype("bfloat16")})


@pytest.mark.parametrize("accept", ["application/json", SAFETENSORS, NPZ])
def test_float16_comes_in_every_format(http, path, accept):
    """All of them know it."""
    answer = get(http, path, accept, dtype="float16")

    if accept == "application/json":
        found = {n: np.array(v, "float16") for n, v in answer.json()["parameters"].items()}
    else:
        found = tensors_in(answer)
    assert_equal_arrays(found, halves("float16"))


def test_bfloat16_comes_as_safetensors(http, path):
    """Read by its own library, to which the tensors are BF16."""
    content = get(http, path, SAFETENSORS, dtype="bfloat16").content

    found = dict(deserialize(content))
    assert {name: bytes(tensor["data"]) for name, tensor in found.items()} == {
        name: array.tobytes() for name, array in halves("bfloat16").items()
    }
    assert {tensor["dtype"] for tensor in found.values()} == {"BF16"}
    assert {name: tuple(tensor["shape"]) for name, tensor in found.items()} == {
        tensor.name: tensor.shape for tensor in LAYOUT.tensors
    }


@pytest.mark.parametrize("accept", ["application/json", NPZ])
def test_what_has_no_bfloat16_refuses_it(http, path, accept):
    """406 with the formats that have it; who takes anything gets one of those."""
    document = assert_problem(get(http, path, accept, dtype="bfloat16"), 406, "not_acceptable")

    assert set(document["media_types"]) == {MSGPACK, SAFETENSORS}
    assert get(http, path, "*/*", dtype="bfloat16").headers["content-type"] == MSGPACK


@pytest.mark.parametrize("dtype", ["float32", "float8", "", "BFLOAT16"])
def test_a_dtype_that_a_pull_has_not_is_422(http, path, dtype):
    """Before anything is held."""
    assert_problem(get(http, path, MSGPACK, dtype=dtype), 422, "invalid_input")


def test_an_etag_differs_by_dtype(http, path):
    """A cache never takes half width for whole; each is 304 by itself."""
    tags = [
        get(http, path, MSGPACK, dtype=dtype).headers["etag"]
        for dtype in ("native", "float16", "bfloat16")
    ]

    assert len(set(tags)) == 3
    for dtype, status in (("float16", 304), ("bfloat16", 200)):
        answer = http.get(
            f"{path}/parameters",
            headers={"Accept": MSGPACK, "If-None-Match": tags[1]},
            params={"dtype": dtype},
        )
        assert answer.status_code == status


def test_scalars_and_empty_tensors_come_as_safetensors(http):
    """A file that its library reads, whatever the shapes."""
    layout = Layout([Tensor("s", (), "float32"), Tensor("e", (0, 2), "float64")])
    path = create(http, layout=layout, values=filled(2.0, layout))

    assert_equal_arrays(load(get(http, path, SAFETENSORS).content), filled(2.0, layout))


def test_a_version_that_was_converted_is_held_no_more(server, http, path):
    """So the next step is in place again."""
    get(http, path, MSGPACK, dtype="float16")

    store = server.application.registry.get(path.rpartition("/")[2]).engine.store
    version = store.hold()
    assert version.holders == 1
    store.release(version)
