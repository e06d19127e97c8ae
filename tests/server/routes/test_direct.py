"""The calls that are answered before FastAPI: the same answers, and the same documentation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from stepwell_core.definition import Definition
from stepwell_core.optimizers import SGD
from stepwell_server import problems
from stepwell_server.checkpoints import Schedule
from stepwell_server.counts import Counts
from stepwell_server.registry import ModelOptions, Registry
from stepwell_server.routes import ROUTERS
from stepwell_server.routes.direct import direct
from stepwell_server.settings import Settings
from stepwell_server.staging import Staging
from stepwell_server.storage.folders import DataFolder

from tests.server.calls import LAYOUT, MSGPACK, arrays_of, assert_problem, packed, payload, unpacked

HEADERS = {"Accept": MSGPACK, "Content-Type": MSGPACK}


def run(data_dir: Path, scenario: Any, *, is_broken: bool = False) -> Any:
    """Run `scenario(clients, model)` with a client of the direct calls, and one of FastAPI."""

    async def main() -> Any:
        data = DataFolder(data_dir)
        staging = Staging(1 << 20, Counts())
        registry = Registry(data, ModelOptions(20.0, "memory", None, Schedule()), staging)
        api = FastAPI()
        api.state.staging = staging
        api.state.registry = None if is_broken else registry
        api.state.settings = Settings()
        for router in ROUTERS:
            api.include_router(router)
        problems.install(api)
        definition = Definition("m", LAYOUT, SGD(0.5, momentum=0.9))
        model, _ = await registry.create(definition, LAYOUT.new_arenas(1.0), exist_ok=False)
        transports = [
            httpx.ASGITransport(app, raise_app_exceptions=False) for app in (direct(api), api)
        ]
        clients = [
            httpx.AsyncClient(transport=t, base_url="http://localhost/v1/models", headers=HEADERS)
            for t in transports
        ]
        try:
            return await scenario(clients, model)
        finally:
            await registry.stop()
            data.release()

    return asyncio.run(main())


CALLS = [
    ("GET", "parameters", None),
    ("GET", "parameters?names=bias&dtype=float16", None),
    ("GET", "parameters?names=bias&names=dense/kernel&slot=momentum", None),
    ("GET", "parameters?names=", None),
    ("GET", "parameters?dtype=native&dtype=float16", None),
    ("GET", "parameters?wait_s=soon", None),
    ("GET", "parameters?min_version=-1", None),
    ("GET", "parameters?incarnation=other", None),
    ("GET", "parameters?unknown=1", None),
    ("GET", "parameters/bias", None),
    ("GET", "parameters/", None),
    ("HEAD", "parameters", None),
    ("DELETE", "parameters", None),
    ("GET", "gradients", None),
    ("POST", "parameters", b""),
    ("POST", "gradients", b""),
    ("POST", "gradients?pull=perhaps", b""),
    ("POST", "gradients?pul=true", b""),
    ("POST", "gradients", packed({"worker": "w0"})),
    ("POST", "gradients/", b""),
]


@pytest.mark.parametrize(("method", "call", "body"), CALLS, ids=str)
def test_a_direct_call_is_answered_as_fastapi_answers_it(tmp_path, method, call, body):
    """Status, media type, ETag and bytes; only a broken rule of the query is worded otherwise."""

    async def scenario(clients, model):
        return [await client.request(method, f"/m/{call}", content=body) for client in clients]

    ours, theirs = run(tmp_path, scenario)

    for field in ("content-type", "etag", "allow"):
        assert ours.headers.get(field) == theirs.headers.get(field)
    assert ours.status_code == theirs.status_code
    if ours.status_code == 422 and "?" in call:
        assert ours.json()["code"] == theirs.json()["code"]
    else:
        assert ours.content == theirs.content


@pytest.mark.parametrize(
    ("method", "call"),
    [("GET", "parameters?min_versoin=3"), ("POST", "gradients?min_versoin=3")],
)
def test_a_query_that_we_do_not_know_is_refused_by_its_name(tmp_path, method, call):
    """A misspelt one would be as good as none."""

    async def scenario(clients, model):
        return [await client.request(method, f"/m/{call}") for client in clients]

    for answer in run(tmp_path, scenario):
        document = assert_problem(answer, 422, "invalid_input")
        (place,) = document["fields"]
        assert place["field"].endswith("min_versoin")


def test_a_push_is_made_and_pulls_either_way(tmp_path):
    """One session, two pushes, one after the other."""

    async def scenario(clients, model):
        session, _, incarnation, _ = await model.sessions.open("w0")
        header = {"worker": "w0", "epoch": session.epoch, "incarnation": incarnation}
        body = payload({t.name: np.ones(t.shape, t.dtype) for t in LAYOUT.tensors})
        answers = []
        for sequence, client in enumerate(clients):
            message = packed({**header, "sequence": sequence, "layout": LAYOUT.hash}, body)
            answers.append(await client.post("/m/gradients?pull=true", content=message))
        return [unpacked(answer.content) for answer in answers]

    answers = run(tmp_path, scenario)

    assert [header["result"]["outcome"] for header, _ in answers] == ["applied"] * 2
    assert [header["version"] for header, _ in answers] == [1, 2]
    assert [(arrays_of(body)["bias"] == 0.5).all() for _, body in answers] == [True, False]


def test_a_model_that_does_not_exist_is_404_on_the_direct_way(http):
    """And a name that cannot be is refused as anywhere."""
    assert_problem(http.get("/v1/models/nobody/parameters"), 404, "model_not_found")
    assert_problem(http.get("/v1/models/-/parameters"), 422, "invalid_name")


def test_a_bug_on_the_direct_way_is_500_and_says_nothing(tmp_path, capsys):
    """The trace is for the log and not for the caller."""

    async def scenario(clients, model):
        return await clients[0].get("/m/parameters")

    answer = run(tmp_path, scenario, is_broken=True)

    assert_problem(answer, 500, "internal_error")
    assert "AttributeError" not in answer.text
