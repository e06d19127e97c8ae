"""Records of strangers are errors of ours, whatever is in them."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from stepwell_core import record
from stepwell_core.consistency import Async, Bounded, Buffered, Quorum, Sync
from stepwell_core.errors import JournalInvalid
from stepwell_core.optimizers import Adam
from stepwell_core.record import (
    ConsistencyChanged,
    Finalized,
    OptimizerChanged,
    SessionClosed,
    SessionOpened,
)

from tests.core.journaled import written
from tests.core.models import Worker, new_engine

ONES = {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4)}


@pytest.fixture
def engine():
    """A model with one push staged."""
    return new_engine(Adam(0.1))


@pytest.fixture
def step(engine):
    """The header and the payload of a step."""
    staged = engine.stage(Worker(engine).make(ONES))
    header, payload = written(staged, engine)
    return msgpack.unpackb(header), payload


@pytest.mark.parametrize(
    "change",
    [
        SessionOpened("w", 3),
        SessionClosed("w", 3),
        OptimizerChanged(Adam(0.25, name="adam")),
        ConsistencyChanged(Async(max_staleness=3, on_stale="scale", lease_s=1.5)),
        ConsistencyChanged(Sync("all", reduction="arrival", patience_s=90.0)),
        ConsistencyChanged(Quorum(workers=3, quorum=2)),
        ConsistencyChanged(Buffered(4)),
        ConsistencyChanged(Bounded(2)),
        Finalized(),
    ],
    ids=str,
)
def test_what_is_described_is_read(engine, change):
    """The same value."""
    header, payload = written(change, engine)

    assert record.read(msgpack.unpackb(header), memoryview(payload), engine.layout) == change


def test_a_gradient_of_all_tensors_does_not_name_them(step):
    """A record of 65,536 names for each push would be most of the journal."""
    header, payload = step

    assert header["gradient"]["tensors"] is None
    assert len(payload) == 4 * 12 + 8 * 4


@pytest.fixture
def gathering():
    """A buffered model, with one gradient in its buffer, and its worker."""
    engine = new_engine(Adam(0.1), consistency=Buffered(3))
    worker = Worker(engine)
    worker.push(ONES)
    return engine, worker


def read_again(staged, engine):
    """Return what a journal gives back of a staged change."""
    header, payload = written(staged, engine)
    return record.read(msgpack.unpackb(header), memoryview(bytearray(payload)), engine.layout)


def test_a_gradient_that_is_gathered_is_read_with_its_weight_and_its_discount(gathering):
    """No step is made of it, so it has no scalars."""
    engine, worker = gathering
    staged = engine.stage(worker.make(ONES, weight=2.5))

    found = read_again(staged, engine)

    assert found.results[0][1].outcome == "buffered"
    assert (found.weight, found.scalars, found.takes_buffer) == (2.5, None, False)
    assert found.gradient.loss_scale == staged.gradient.loss_scale
    assert (found.gradient.arenas["float64"] == staged.gradient.arenas["float64"]).all()


def test_the_push_that_completes_a_buffer_is_read_as_a_step_of_all(gathering):
    """Its own gradient is added before the mean is taken."""
    engine, worker = gathering
    worker.push(ONES)
    staged = engine.stage(worker.make(ONES))

    found = read_again(staged, engine)

    assert found.results[0][1].outcome == "applied"
    assert (found.weight, found.takes_buffer) == (1.0, True)
    assert found.gradient is not None


def test_a_step_of_what_was_gathered_is_read_without_push_or_gradient(gathering):
    """As a change of the mode makes it."""
    engine, _ = gathering
    staged = engine.stage_gathered()

    found = read_again(staged, engine)

    assert (found.results, found.gradient, found.weight) == ((), None, None)
    assert found.takes_buffer
    assert found.counters == staged.counters


@pytest.mark.parametrize(
    "said",
    [None, {}, "sync", {"mode": "bulk"}, {"mode": "sync", "workers": 0}, {"mode": "buffered"}, [1]],
    ids=str,
)
def test_a_mode_that_cannot_be_is_no_record(engine, said):
    """Refused before it is made."""
    with pytest.raises(JournalInvalid):
        record.read({"kind": "consistency", "consistency": said}, memoryview(b""), engine.layout)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf"), "1", None, []])
def test_a_weight_that_cannot_be_is_no_record(gathering, weight):
    """It would make a mean of nothing."""
    engine, worker = gathering
    header, payload = written(engine.stage(worker.make(ONES)), engine)
    hostile = {**msgpack.unpackb(header), "weight": weight}

    with pytest.raises(JournalInvalid):
        record.read(hostile, memoryview(bytearray(payload)), engine.layout)


def paths(value, path=()):
    """Yield the place of every value in a header."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from paths(item, (*path, key))


STRANGE = [None, "x", -1, 1 << 70, [], {}, [1], {"a": 1}, b"", b"x" * 3, 1.5, True]


def test_every_value_of_a_header_may_be_anything(engine, step):
    """It is read, or refused with our error; no other comes out."""
    header, payload = step
    refused = 0
    for path in list(paths(header)):
        for strange in STRANGE:
            hostile = msgpack.unpackb(msgpack.packb(header))
            place = hostile
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = strange
            try:
                record.read(hostile, memoryview(bytearray(payload)), engine.layout)
            except JournalInvalid:
                refused += 1

    assert refused > 100


def test_a_key_that_is_missing_is_refused(engine, step):
    """Each of them."""
    header, payload = step
    for key in header:
        if key == "scalars":
            continue
        hostile = {name: value for name, value in header.items() if name != key}
        with pytest.raises(JournalInvalid):
            record.read(hostile, memoryview(bytearray(payload)), engine.layout)


@pytest.mark.parametrize("size", [0, 1, 79, 81, 800])
def test_a_payload_of_another_size_is_refused(engine, step, size):
    """Before anything is read from it."""
    with pytest.raises(JournalInvalid, match="ValueError"):
        record.read(step[0], memoryview(bytearray(size)), engine.layout)
