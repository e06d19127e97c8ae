"""The layering of docs/architecture.md, held by reading every import statement in the sources.

A *room* is a module or folder directly inside one of the three packages: `stepwell_core.layout`,
`stepwell_core.optimizers`. The room "" is a package's own `__init__.py`. A new module that needs
a new arrow is given one here, in the table, where a reviewer sees it.
"""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = {"stepwell_core": "core", "stepwell_server": "server", "stepwell": "client"}

# ---------------------------------------------------------------------------------------------
# The arrows.

# In core, room by room: the other rooms it may import. Every room may import `errors` and itself;
# a room that is not listed may import nothing else.
CORE_ARROWS: dict[str, set[str]] = {
    "optimizers": set(),
    "schedules": set(),
    "names": set(),
    "strict": {"names"},
    "session": {"strict"},
    "ledger": {"session", "strict"},
    "layout": {"names"},
    "loss_scale": {"optimizers", "strict"},
    "keras_config": {"optimizers", "schedules", "loss_scale"},
    "kernels": set(),
    "gradient": {"kernels", "layout"},
    "groups": {"keras_config", "names", "optimizers"},
    "plan": {"groups", "optimizers", "layout"},
    "encoding": {"plan", "kernels", "layout"},
    "clipping": {"gradient", "plan", "kernels", "optimizers", "layout"},
    "norms": {"gradient", "kernels", "layout"},
    "scalars": {"groups", "kernels", "optimizers", "schedules", "layout"},
    "aggregation": {"gradient", "plan", "kernels", "layout"},
    "pipeline": {
        "gradient", "groups", "plan", "clipping", "scalars", "aggregation", "kernels", "optimizers",
        "layout",
    },
    "store": {"layout"},
    "placement": {"layout"},
    "consistency": {"layout"},
    "buffer": {"aggregation", "gradient", "layout", "pipeline", "strict", "wire"},
    "wire": set(),
    "contrast": set(),
    "definition": {
        "contrast", "groups", "keras_config", "consistency", "loss_scale", "optimizers", "layout",
        "names",
    },
    "state": {
        "buffer", "definition", "ledger", "loss_scale", "pipeline", "store", "strict", "layout",
    },
    "push": {"definition", "gradient", "scalars", "session", "state", "wire"},
    "record": {
        "consistency", "gradient", "keras_config", "layout", "ledger", "loss_scale", "optimizers",
        "push", "scalars", "session", "state", "strict",
    },
    "admission": {"definition", "gradient", "push", "session", "state", "wire"},
    "replay": {"engine", "hyperparameters", "record", "push"},
    "succession": {"buffer", "layout", "pipeline", "state"},
    "reduction": {"aggregation", "definition", "gradient", "loss_scale", "pipeline", "push"},
    "decision": {
        "definition", "gradient", "loss_scale", "pipeline", "push", "scalars", "session", "state",
        "wire",
    },
    "hyperparameters": {"definition", "optimizers", "pipeline", "schedules", "state"},
    "held_model": {
        "buffer", "consistency", "definition", "hyperparameters", "layout", "ledger", "loss_scale",
        "pipeline", "push", "reduction", "state", "store", "succession",
    },
    "engine": {
        "admission", "buffer", "consistency", "decision", "held_model", "ledger", "pipeline",
        "push", "session", "wire",
    },
    "rehearsal": {
        "engine", "push", "definition", "consistency", "pipeline", "layout", "norms", "session",
        "wire",
    },
}  # fmt: skip

# Core is pure: these parts of the standard library and no others. None of them opens a file or
# a socket, reads a clock or the environment, or starts a process or an event loop.
CORE_STANDARD_LIBRARY = {
    "__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "decimal",
    "enum", "fractions", "functools", "hashlib", "heapq", "inspect", "itertools", "json",
    "keyword", "math", "numbers", "operator", "re", "reprlib", "string", "struct", "textwrap",
    "threading", "types", "typing", "warnings", "weakref",
}  # fmt: skip
CORE_FORBIDDEN_CALLS = {"open", "input", "print", "__import__"}
CORE_THIRD_PARTY = {"numpy"}

# What single rooms of core may import beyond that, and why.
CORE_EXCEPTIONS: dict[str, dict[str, str]] = {
    "kernels": {
        "numba": "the one place that compiles",
        # Numba's cache folder: named after a hash of the sources, private, owner checked, and set
        # around each compilation. Nothing of a model is ever in a file here.
        "fcntl": "one process at a time writes the cache's index",
        "os": "the cache folder",
        "pathlib": "the cache folder",
        "stat": "the cache folder",
        "tempfile": "the cache folder",
        "importlib.metadata": "the versions of Numba and NumPy in the cache folder's name",
    },
    "wire": {"msgpack": "messages are msgpack streams"},
    "gradient": {"xxhash": "the fingerprint of a payload"},
}

# The client stays light: these rooms of core work without Numba, and nothing else of core is used.
CLIENT_CORE_ROOMS = {
    "wire", "errors", "names", "layout", "optimizers", "schedules", "loss_scale", "consistency",
    "keras_config", "placement", "groups", "strict", "contrast",
}  # fmt: skip
CLIENT_NEVER = {"numba", "fastapi", "pydantic", "uvicorn", "starlette"}
# The script hands over to the server's command line once it has seen that it is installed.
CLIENT_ROOMS_THAT_MAY_IMPORT_SERVER = {"command"}

# Nothing else in server knows the client. Patterns, because the demo is several modules.
SERVER_ROOMS_THAT_MAY_IMPORT_CLIENT = ("__main__", "cli*", "demo*")
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, its text, and whether it is an `__init__.py`."""

    name: str
    source: str
    is_package: bool = False

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    @property
    def room(self) -> str:
        return room_of(self.name)


def room_of(name: str) -> str:
    """Return the second part of a dotted name, "" for a package itself."""
    return [*name.split("."), ""][1]


def modules() -> list[Module]:
    """Read every source file there is; what does not exist yet is not missed."""
    found = []
    for package, root in SOURCE_ROOTS.items():
        for path in sorted((ROOT / root / package).rglob("*.py")):
            parts = path.relative_to(ROOT / root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            found.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return found


def imported_names(module: Module) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of every import, wherever in the file it stands.

    `from a import b` yields `a.b`, since `b` may be a module. Imports under `TYPE_CHECKING` count
    too: a type of another room is knowledge of that room.
    """
    for node in ast.walk(ast.parse(module.source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.name.split(".")
                keep = len(parents) - node.level + module.is_package
                base = ".".join([*parents[:keep], *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def reason_against(module: Module, name: str) -> str | None:
    """Say which arrow the import of `name` breaks, or None."""
    target, room = name.partition(".")[0], room_of(name)
    match module.package, target:
        case "stepwell_core", "stepwell_core":
            allowed = {"errors", module.room} | CORE_ARROWS.get(module.room, set())
            if module.room == "":  # the package's front page may show what the client may see
                allowed |= CLIENT_CORE_ROOMS
            return None if room in allowed else f"core's {module.room} may import {sorted(allowed)}"
        case "stepwell_core", _:
            excepted = CORE_EXCEPTIONS.get(module.room, {})
            if any(f"{name}.".startswith(f"{exception}.") for exception in excepted):
                return None
            return None if target in CORE_STANDARD_LIBRARY | CORE_THIRD_PARTY else "core is pure"
        case "stepwell", "stepwell_core":
            return None if room in CLIENT_CORE_ROOMS else "the client may not use this room of core"
        case "stepwell", "stepwell_server":
            allowed_here = module.room in CLIENT_ROOMS_THAT_MAY_IMPORT_SERVER
            return None if allowed_here else "the client does not know the server"
        case "stepwell", _:
            return "the client works without it" if target in CLIENT_NEVER else None
        case "stepwell_server", "stepwell":
            patterns = SERVER_ROOMS_THAT_MAY_IMPORT_CLIENT
            allowed_here = any(fnmatch.fnmatch(module.room, pattern) for pattern in patterns)
            return None if allowed_here else "only the command line and the demo use the client"
    return None


def broken_arrows(module: Module) -> list[str]:
    """Return one line of text for each import, and each call in core, that the table forbids."""
    broken = []
    for line, name in imported_names(module):
        if reason := reason_against(module, name):
            broken.append(f"{module.name}:{line} imports {name}: {reason}")
    if module.package == "stepwell_core":
        for node in ast.walk(ast.parse(module.source)):
            match node:
                case ast.Call(func=ast.Name(id=called)) if called in CORE_FORBIDDEN_CALLS:
                    broken.append(f"{module.name}:{node.lineno} calls {called}: core is pure")
    return broken


def test_every_import_follows_an_arrow():
    """No module of the three packages imports what the table above does not allow."""
    broken = [line for module in modules() for line in broken_arrows(module)]

    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("stepwell_core.engine", "import stepwell_server"),
        ("stepwell_core.engine", "import stepwell"),
        ("stepwell_core.engine", "from stepwell_core import kernels"),
        ("stepwell_core.engine", "def step():\n    from . import record"),
        ("stepwell_core.store", "import time"),
        ("stepwell_core.store", "from os import path"),
        ("stepwell_core.store", "import asyncio as a"),
        ("stepwell_core.store", "open('weights')"),
        ("stepwell_core.kernels", "from importlib import import_module"),
        ("stepwell_core.pipeline", "import numba"),
        ("stepwell_core.pipeline", "from numba import njit"),
        ("stepwell_core.kernels.step", "from stepwell_core.optimizers import Adam"),
        ("stepwell_core.wire", "from stepwell_core.layout import Layout"),
        ("stepwell_core.layout", "from stepwell_core.store import Store"),
        ("stepwell_core.layout", "from stepwell_core import Layout"),
        ("stepwell_core.layout", "if TYPE_CHECKING:\n    import socket"),
        ("stepwell_core.optimizers.adam", "from ..schedules import ExponentialDecay"),
        ("stepwell_core.optimizers.adam", "from stepwell_core.pipeline import Pipeline"),
        ("stepwell_core.brand_new", "from stepwell_core.layout import Layout"),
        ("stepwell.client", "from stepwell_core.engine import Engine"),
        ("stepwell.client", "from stepwell_core import kernels"),
        ("stepwell.client", "import stepwell_server.cli"),
        ("stepwell.integrations.torch", "import pydantic"),
        ("stepwell_server.lane", "from stepwell import Client"),
        ("stepwell_server.routes.models", "import stepwell.calls"),
    ],
)
def test_a_seeded_bad_import_is_caught(name, source):
    """The checker sees absolute, relative, renamed, nested and type-only imports."""
    assert len(broken_arrows(Module(name, source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("stepwell_core.engine", "from .ledger import Ledger\nfrom .errors import Fenced"),
        ("stepwell_core.optimizers.adam", "from . import base\nfrom .base import Optimizer"),
        ("stepwell_core.optimizers.adam", "from ..errors import DoesNotFit\nimport numpy"),
        ("stepwell_core.kernels.cache", "import os\nimport numba"),
        ("stepwell.client", "from stepwell_core import errors, layout\nimport httpx, time"),
        ("stepwell.command", "from stepwell_server.cli import main"),
        ("stepwell_server.demo.worker", "import stepwell"),
        ("stepwell_server.cli", "from stepwell import Client"),
        ("stepwell_server.lane", "from stepwell_core.engine import Engine\nimport threading"),
    ],
)
def test_an_allowed_import_is_not_reported(name, source):
    """Arrows that the table has are quiet."""
    assert broken_arrows(Module(name, source)) == []


def test_a_package_resolves_its_own_relative_imports():
    """In an `__init__.py` one dot is the package itself, not its parent."""
    front_page = Module("stepwell_core.optimizers", "from .adam import Adam", is_package=True)

    names = [name for _, name in imported_names(front_page)]

    assert names == ["stepwell_core.optimizers.adam.Adam"]
    assert broken_arrows(front_page) == []


def test_the_client_imports_where_the_server_extra_is_missing():
    """`import stepwell` and the rooms of core that it may use never ask for a server's packages."""
    rooms = [f"stepwell_core.{room}" for room in sorted(CLIENT_CORE_ROOMS)]
    present = {module.name for module in modules()}
    program = dedent(
        f"""
        import importlib, sys

        asked_for = []

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {sorted(CLIENT_NEVER)}:
                    asked_for.append(name)
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Absent())
        for name in {[name for name in ["stepwell", *rooms] if name in present]}:
            importlib.import_module(name)
        assert not asked_for, asked_for
        """
    )

    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )

    assert result.returncode == 0, result.stderr
