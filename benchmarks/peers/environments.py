"""An environment for each peer in `.venv-peers/`, with the versions in `constraints/`.

They stay for the next run; `make clean` removes them. What cannot be installed on a machine is no
failure: the figures of that peer are not measured there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.programs import ROOT

FOLDER = ROOT / ".venv-peers"
CONSTRAINTS = Path(__file__).parent / "constraints"
LAST_LINES = 3


class NotInstalled(Exception):
    """A peer cannot be installed here; says why."""


@dataclass(frozen=True)
class Environment:
    """What a peer's program needs.

    Attributes:
        name: Of its program, its constraints and its folder.
        requirements: By name, for pip.
        python: The only version that it runs with, such as "3.11"; None if ours will do.
        has_small_call: Whether its program is asked for 4 KB too.
        polls: Whether it keeps a core busy with nothing to do, so that it has to be stopped while
            others have their turn.
    """

    name: str
    requirements: tuple[str, ...]
    python: str | None = None
    has_small_call: bool = False
    polls: bool = False

    @property
    def interpreter(self) -> Path:
        """The environment's interpreter; there is none before `install`."""
        return FOLDER / self.name / "bin" / "python"

    def install(self) -> None:
        """Make the environment, unless it is there with these versions.

        Raises:
            NotInstalled: There is no such Python here, or pip failed.
        """
        pins = CONSTRAINTS / f"{self.name}.txt"
        stamp = FOLDER / self.name / ".installed"
        if stamp.exists() and stamp.read_text() == pins.read_text():
            return
        python = self._python()
        print(f"installing {', '.join(self.requirements)} ...", file=sys.stderr, flush=True)
        _run(python, "-m", "venv", "--clear", "--without-pip", FOLDER / self.name)
        pip = (sys.executable, "-m", "pip", "--python", self.interpreter)
        flags = ("--quiet", "--disable-pip-version-check", "--constraint", pins)
        _run(*pip, "install", *flags, *self.requirements)
        stamp.write_text(pins.read_text())

    def _python(self) -> str:
        if self.python in (None, "{}.{}".format(*sys.version_info)):
            return sys.executable
        found = shutil.which(f"python{self.python}")
        if found is None:
            raise NotInstalled(f"needs Python {self.python}, and there is none")
        return found


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotInstalled(" ".join(said[-LAST_LINES:]) or f"status {done.returncode}")


ENVIRONMENTS = (
    Environment("torch_rpc", ("torch", "numpy"), has_small_call=True, polls=True),
    Environment("mxnet_kvstore", ("mxnet", "numpy"), python="3.11"),
    Environment("tensorflow_ps", ("tensorflow-cpu",)),
    Environment("ray_actor", ("ray", "torch", "numpy"), has_small_call=True),
)
