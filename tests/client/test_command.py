"""Tests of `stepwell.command`: the script of an install with and without the server."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys

import pytest
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


PROGRAMS = {
    "stepwell": "import sys\nfrom stepwell.command import main\nsys.exit(main())\n",
    "train.py": "import stepwell\n",
}
"""The script that an install makes, and a user's."""

INTERRUPTING = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt as interrupt:
    raise RuntimeError("a class could not be made") from interrupt
"""
"""A module in whose midst Ctrl-C comes; as Pydantic does, it says something else of it."""


@pytest.mark.parametrize(
    ("program", "module"),
    [
        *itertools.product(["stepwell", "-m stepwell", "-m stepwell_server"], ["typer"]),
        *itertools.product(["-m stepwell serve", "-m stepwell doctor"], ["pydantic_settings"]),
    ],
)
def test_ctrl_c_among_the_first_imports_ends_the_command_quietly(tmp_path, program, module):
    """No traceback, and the exit code of an interrupt, whichever module is being read."""
    ended = interrupted(tmp_path, program, module)

    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_ctrl_c_among_the_imports_of_somebody_elses_program_is_an_exception(tmp_path):
    """It may have much to clear up."""
    ended = interrupted(tmp_path, "train.py", "msgpack")

    assert "KeyboardInterrupt" in ended.stderr


def test_a_command_that_began_takes_ctrl_c_as_python_does():
    """`bench` and the exports clear up then."""
    program = (
        "import signal, sys; sys.argv = ['stepwell', '--version']\n"
        "from stepwell.command import main; main()\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_command_that_ignores_ctrl_c_goes_on_to_do_so(monkeypatch):
    """As in the background of a shell."""
    monkeypatch.setattr(sys, "argv", ["stepwell"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with command.quick_to_leave():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted(folder, program, module):
    """Run a program that gets SIGINT when it imports a module, and return how it ended."""
    (folder / f"{module}.py").write_text(INTERRUPTING)
    if program in PROGRAMS:
        (folder / program).write_text(PROGRAMS[program])
        program = str(folder / program)
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, *program.split()],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
