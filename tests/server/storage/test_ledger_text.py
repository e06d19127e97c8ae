"""The ledger in a manifest is plain JSON, of which never more than one session is made at once."""

from __future__ import annotations

import json

import pytest
from stepwell_core.ledger import Ledger
from stepwell_core.session import Result
from stepwell_server.storage import ledger_text


@pytest.fixture(params=[0, 1, 3])
def ledger(request):
    """A ledger of so many sessions, one of them closed."""
    ledger = Ledger()
    for number in range(request.param):
        session, _ = ledger.open(f"w{number}")
        for sequence in range(number):
            ledger.record(f"w{number}", session.epoch, sequence, Result("applied", 1, 1), "f" * 16)
    ledger.close("w1", 2)
    return ledger


def test_what_is_decoded_is_what_was_encoded(ledger):
    """And any reader of JSON reads the same."""
    text = ledger_text.encoded(ledger)

    assert ledger_text.decoded(text).to_json() == ledger.to_json()
    assert json.loads(text) == ledger.to_json()


def test_json_of_another_writer_is_read_too(ledger):
    """However it is laid out."""
    for indent in (None, 2):
        text = json.dumps(ledger.to_json(), indent=indent).encode()

        assert ledger_text.decoded(text).to_json() == ledger.to_json()


def test_no_call_of_json_has_more_than_one_session(ledger, monkeypatch):
    """Such a call holds the interpreter until it is done, and 10,000 sessions take seconds."""
    most, dumps, loads = [0], json.dumps, json.loads

    def counted(call, size):
        def counting(value, **options):
            result = call(value, **options)
            most.append(str(size(value, result)).count("last_sequence"))
            return result

        return counting

    monkeypatch.setattr(json, "dumps", counted(dumps, lambda value, result: result))
    monkeypatch.setattr(json, "loads", counted(loads, lambda value, result: value))

    text = ledger_text.encoded(ledger)
    _, text = ledger_text.split(ledger_text.joined({"a": 1}, text))
    ledger_text.decoded(text)

    assert max(most) <= 1


def test_the_other_values_are_read_without_the_ledger(ledger):
    """A list of checkpoints reads every manifest."""
    text = ledger_text.encoded(ledger)
    tricky = {"hashes": {"f": {'x,"ledger":{': "y", "ledger": "z", "ledger_xxh3_128": "0"}}}

    joined = ledger_text.joined(tricky, text)
    values, found = ledger_text.split(joined)

    assert values == {**tricky, "ledger_xxh3_128": ledger_text.hash_of(text)}
    assert found == text
    assert json.loads(joined)["ledger"] == ledger.to_json()


def test_a_manifest_of_before_has_the_ledger_among_the_others(ledger):
    """It is read; that it has no hash costs one more checkpoint at the next stop."""
    text = json.dumps({"ledger": ledger.to_json(), "id": "x"}).encode()

    values, found = ledger_text.split(text)

    assert values == {"id": "x"}
    assert ledger_text.decoded(found).to_json() == ledger.to_json()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"a":1',
        b'{"a":1,"ledger_xxh3_128":"' + b"0" * 32 + b'","ledger":{}}',
        b'[1,"ledger_xxh3_128":"99aa06d3014798d86001c324468d497f","ledger":}',
    ],
)
def test_what_is_no_such_map_is_refused(text):
    """As a ValueError, whatever it is."""
    with pytest.raises(ValueError, match=r"."):
        ledger_text.split(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b'{"last_epoch":1,"most_open":0,"sessions":[\n{}\n]}',
        b'{"last_epoch":1,"most_open":0,"sessions":[\n1,\n]}',
        b'{"last_epoch":1,"most_open":0,"sessions":[\n{"a":\n]}',
        b'[{"sessions":[\n]}',
        b'{"last_epoch":"x","most_open":0,"sessions":[\n]}',
    ],
)
def test_what_is_no_ledger_is_refused(text):
    """Types, shape and JSON."""
    with pytest.raises(ValueError, match=r"."):
        ledger_text.decoded(text)
