"""Tests of `stepwell.command`: the script of an install with and without the server."""

from __future__ import annotations

import subprocess
import sys

from stepwell import command


def test_without_the_server_a_person_gets_the_line_to_type(monkeypatch, capsys):
    """No traceback, and which packages are missing."""
    monkeypatch.setattr(
        command, "find_spec", lambda name: None if name in ("fastapi", "numba") else object()
    )

    status = command.main()

    assert status == 1
    assert capsys.readouterr().err == (
        "stepwell: only the client is installed (missing: fastapi, numba). The commands come with "
        'the server: pip install "stepwell[server]"\n'
    )


def test_with_the_server_its_command_line_is_run():
    """`python -m stepwell` is the `stepwell` script."""
    shown = subprocess.run(
        [sys.executable, "-m", "stepwell", "--version"], capture_output=True, text=True, timeout=60
    )

    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.strip() == installed_version()


def installed_version():
    """Return the version of the distribution."""
    from importlib.metadata import version

    return version("stepwell")
