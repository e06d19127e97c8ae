"""Makes `AsyncClient` look like `Client`, so that one test can be written for both.

An event loop runs in a thread of its own. Each call is a task on it, and the caller waits for the
result; so calls from several threads are several tasks of one loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from contextlib import AbstractAsyncContextManager
from typing import Any
from unittest import mock

import stepwell
from stepwell import AsyncClient, AsyncModel, AsyncWorker, Client
from stepwell.transport import HttpxTransport

DEADLINE_S = 60.0


class BlockingClients:
    """Makes clients of `Client` itself."""

    is_async = False

    def client(self, *arguments: Any, **options: Any) -> Any:
        """Return a client."""
        return Client(*arguments, **options)

    def close(self) -> None:
        """There is nothing to end."""


class HttpxClients(BlockingClients):
    """Makes clients of `Client` as they are behind a proxy: calls go over httpx."""

    def client(self, *arguments: Any, **options: Any) -> Any:
        """Return a client."""
        with mock.patch("stepwell.client.new_transport", HttpxTransport):
            return Client(*arguments, **options)


class AsyncClients:
    """Makes clients of `AsyncClient`, driven by a loop in a thread."""

    is_async = True

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def client(self, *arguments: Any, **options: Any) -> Any:
        """Return a client that can be called as a blocking one."""
        return _Driven(self, AsyncClient(*arguments, **options))

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine on the loop, wait for it, and drive what it returns as well."""
        task = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return self.driven(task.result(DEADLINE_S))

    def driven(self, value: Any) -> Any:
        """Return an object of the asyncio client as one that can be called without `await`."""
        if inspect.isasyncgen(value):
            return self._iterated(value)
        has_calls = isinstance(value, AsyncModel | AsyncWorker | AbstractAsyncContextManager)
        return _Driven(self, value) if has_calls else value

    def _iterated(self, generator: Any) -> Any:
        """Yield what an asynchronous generator yields."""
        try:
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    yield self.run(anext(generator))
        finally:
            self.run(generator.aclose())

    def close(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()


class _Driven:
    """An object whose coroutines are run to their end when they are called."""

    def __init__(self, clients: AsyncClients, target: Any) -> None:
        self._clients = clients
        self.target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **options: Any) -> Any:
            made = value(*arguments, **options)
            run = self._clients.run if inspect.iscoroutine(made) else self._clients.driven
            return run(made)

        return call

    def __enter__(self) -> Any:
        entered = self._clients.run(self.target.__aenter__())
        is_same = isinstance(entered, _Driven) and entered.target is self.target
        return self if is_same else entered

    def __exit__(self, *exception: Any) -> None:
        self._clients.run(self.target.__aexit__(*exception))

    def __repr__(self) -> str:
        return repr(self.target)


ADAPTERS = {"Client": BlockingClients, "AsyncClient": AsyncClients}

PATIENT = stepwell.Timeout(connect_s=30, read_s=30, retry_s=60)
"""For a busy machine; nothing in the tests waits for its end."""
