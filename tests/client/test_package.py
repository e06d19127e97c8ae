"""Tests of the package itself: what `import stepwell` brings, and what it leaves out."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import stepwell

SLOW_OR_ABSENT = {
    "numba", "llvmlite", "fastapi", "starlette", "pydantic", "uvicorn", "keras", "scipy", "sklearn",
    "matplotlib", "structlog", "typer", "safetensors", "torch", "jax", "stepwell_server",
}  # fmt: skip


def test_importing_stepwell_loads_neither_the_server_nor_a_framework():
    """A worker starts fast, and needs numpy, msgpack and httpx alone."""
    program = "import sys, stepwell; print(*{name.partition('.')[0] for name in sys.modules})"

    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()

    assert not SLOW_OR_ABSENT & set(loaded)
    assert {"numpy", "msgpack", "httpx"} <= set(loaded)


def test_every_public_name_is_there_and_has_a_docstring():
    """What `__all__` promises can be imported and read about."""
    for name in stepwell.__all__:
        assert getattr(stepwell, name).__doc__, name


def test_the_asyncio_client_has_every_method_of_the_blocking_one():
    """Same names, same arguments; only `with` and `async with` differ."""
    pairs = [
        (stepwell.Client, stepwell.AsyncClient),
        (stepwell.Model, stepwell.AsyncModel),
        (stepwell.Worker, stepwell.AsyncWorker),
    ]
    for blocking, asynchronous in pairs:
        mine = {name: parameters(blocking, name) for name in vars(blocking) if name[0] != "_"}
        theirs = {name: parameters(asynchronous, name) for name in mine}
        assert mine == theirs
        assert parameters(blocking, "__init__") == parameters(asynchronous, "__init__") or (
            blocking is not stepwell.Client
        )


def parameters(cls, name):
    """Return names, kinds and defaults of a method's arguments."""
    import inspect

    found = inspect.signature(getattr(cls, name)).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in found]


def test_the_version_is_that_of_the_distribution():
    """One number in two places."""
    assert stepwell.__version__ == importlib.metadata.version("stepwell")
