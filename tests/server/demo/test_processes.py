"""The demo's processes are started, watched and stopped; a failure is told, not waited for."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
from stepwell_server.demo.processes import DemoFailed, Workers, server
from stepwell_server.demo.worker import Task


def test_a_server_is_ready_inside_the_block_and_gone_behind_it(tmp_path: Path) -> None:
    """The URL answers at once, and no longer when the block ends."""
    with server(tmp_path / "data", tmp_path / "server.log") as url:
        status = httpx.get(url + "/readyz", trust_env=False).status_code

    assert status == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(url + "/readyz", trust_env=False)


def test_a_server_that_cannot_start_is_told_with_its_log(tmp_path: Path) -> None:
    """A data folder of another program ends the demo with the server's own words."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("not Stepwell's")

    with (
        pytest.raises(DemoFailed, match="not Stepwell's"),
        server(tmp_path / "data", tmp_path / "server.log"),
    ):
        pass


def test_a_worker_that_fails_is_told_with_its_log(tmp_path: Path) -> None:
    """A worker without a server ends, and `check` says why."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        workers = Workers(url, [Task("digits", "w0", 0, 1, 8, 0)], tmp_path)

        with pytest.raises(DemoFailed, match="cannot be reached"):
            workers.join()

    assert workers.reported() == []
