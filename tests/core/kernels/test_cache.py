"""The kernels' cache: private, and never for other sources than these."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import stepwell_core
from stepwell_core.kernels import cache

SOURCES = Path(stepwell_core.__file__).parent
ONE_STEP = dedent(
    """
    import numpy as np
    from stepwell_core import kernels
    from stepwell_core.kernels.compiler import compile_kernel
    from stepwell_core.optimizers.adagrad import update

    kernel = kernels.step_kernel(update, 1, kernels.Stages(), in_place=True)
    w, a, nothing = np.ones(4, "f4"), np.zeros(4, "f4"), np.empty(0, "f4")
    runs, ones = np.array([[0, 4, 0]]), np.ones((1, 2), "f4")
    scalars = (np.float32(0.25), np.float32(1e-7))
    kernel(w, w, w.copy(), (a,), nothing, nothing, runs, ones, np.ones(7, "f4"), scalars)
    print(w[0], sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
    """
)


@pytest.fixture(autouse=True)
def _forget_the_folder() -> Iterator[None]:
    """Let each test ask anew, and leave no answer behind."""
    cache.cache_folder.cache_clear()
    yield
    cache.cache_folder.cache_clear()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Give a copy of core that may be edited, without what Python compiled of the original."""
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCES, tmp_path / "core" / "stepwell_core", ignore=without)
    return tmp_path


def run_a_step(copied: Path, **environment: str) -> tuple[float, int, int]:
    """Make one step with the copy in a new process; return w, cache hits and cache misses."""
    result = subprocess.run(
        [sys.executable, "-c", ONE_STEP],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        cwd=copied,
        env={
            **os.environ,
            "PYTHONPATH": str(copied / "core"),
            "STEPWELL_CACHE_DIR": str(copied / "cache"),
            **environment,
        },
    )
    w, hits, misses = result.stdout.split()
    return float(w), int(hits), int(misses)


def edit_the_rule(copied: Path) -> None:
    """Make Adagrad go uphill; the file keeps its size and its time."""
    path = copied / "core" / "stepwell_core" / "optimizers" / "adagrad.py"
    source, times = path.read_text(), path.stat()
    line = "w = w - (learning_rate * g) / np.sqrt(a + epsilon)"
    assert source.count(line) == 1
    path.write_text(source.replace(line, line.replace("w -", "w +")))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_an_edited_rule_is_never_served_from_the_cache(copied: Path) -> None:
    """A second process loads what the first compiled; after an edit it computes the new rule."""
    # Arrange: Python's own cache goes by size and time, which the edit keeps, so it is left out
    ours_alone = {"PYTHONDONTWRITEBYTECODE": "1"}

    # Act
    first = run_a_step(copied, **ours_alone)
    second = run_a_step(copied, **ours_alone)
    edit_the_rule(copied)
    edited = run_a_step(copied, **ours_alone)

    # Assert
    assert first == (0.75, 0, 1)
    assert second == (0.75, 1, 0)
    assert edited == (1.25, 0, 1)


def test_the_environment_of_a_parent_process_changes_nothing(copied: Path, tmp_path: Path) -> None:
    """`NUMBA_CACHE_DIR` is somebody else's folder: ours is used, and theirs stays empty."""
    # Arrange
    theirs = tmp_path / "theirs"
    theirs.mkdir()

    # Act
    run_a_step(copied, NUMBA_CACHE_DIR=str(theirs))

    # Assert
    assert list(theirs.iterdir()) == []
    assert len(list((copied / "cache").glob("kernels-*"))) == 1


def test_nothing_is_written_beside_the_sources(copied: Path) -> None:
    """Numba's default, `__pycache__`, would outlive an edit."""
    # Act
    run_a_step(copied)

    # Assert
    written = {path.suffix for path in (copied / "core").rglob("*") if path.is_file()}
    assert written <= {".py", ".pyc", ".typed"}


def test_our_environment_is_left_alone() -> None:
    """Child processes, whose sources may be others, inherit no folder from us."""
    # Arrange
    import stepwell_core.kernels

    # Act
    folder = os.environ.get("NUMBA_CACHE_DIR")

    # Assert
    assert stepwell_core.kernels.step_kernel
    assert folder is None or "stepwell" not in folder


def test_the_folder_is_private_and_named_after_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made with mode 0700 below `STEPWELL_CACHE_DIR`."""
    # Arrange
    monkeypatch.setenv("STEPWELL_CACHE_DIR", str(tmp_path / "new" / "cache"))

    # Act
    folder = cache.cache_folder()

    # Assert
    assert folder == tmp_path / "new" / "cache" / f"kernels-{cache.source_hash()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("environment", "parent"),
    [
        ({"XDG_CACHE_HOME": "xdg", "HOME": "home"}, "xdg/stepwell"),
        ({"HOME": "home"}, "home/.cache/stepwell"),
        ({"STEPWELL_CACHE_DIR": "own", "XDG_CACHE_HOME": "xdg"}, "own"),
    ],
    ids=["xdg", "home", "own"],
)
def test_the_folder_is_where_caches_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], parent: str
) -> None:
    """`STEPWELL_CACHE_DIR`, else the user's cache folder."""
    # Arrange
    for name in ("STEPWELL_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value))

    # Act
    folder = cache.cache_folder()

    # Assert
    assert folder.parent == tmp_path / parent


def is_replaced(folder: Path) -> bool:
    """Return whether a new private folder takes the place of one that is refused."""
    cache.cache_folder.cache_clear()
    chosen = cache.cache_folder()
    is_new = chosen != folder and stat.S_IMODE(chosen.stat().st_mode) == 0o700
    if is_new:
        chosen.rmdir()
    return is_new


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder as it would be chosen; temporary folders go below the test's own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("STEPWELL_CACHE_DIR", str(tmp_path / "cache"))
    return cache.cache_folder()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777, 0o701, 0o704, 0o720])
def test_a_folder_that_is_open_to_others_is_refused(ours: Path, mode: int) -> None:
    """Others could lay a pickle into it, or read what is there."""
    # Arrange
    ours.chmod(mode)

    # Act / Assert
    assert is_replaced(ours)


def test_a_folder_of_another_user_is_refused(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could lay a pickle into it at any time."""
    # Arrange
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)

    # Act / Assert
    assert is_replaced(ours)


def test_a_link_is_refused(ours: Path, tmp_path: Path) -> None:
    """A private folder behind somebody's link may be exchanged for another."""
    # Arrange
    target = tmp_path / "target"
    ours.rename(target)
    ours.symlink_to(target)

    # Act / Assert
    assert is_replaced(ours)


def test_a_file_in_the_way_is_refused(ours: Path) -> None:
    """What is no folder holds no cache."""
    # Arrange
    ours.rmdir()
    ours.touch(mode=0o600)

    # Act / Assert
    assert is_replaced(ours)


def test_a_place_that_cannot_be_made_is_refused(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a place to write, kernels are compiled anew in a temporary folder."""
    # Arrange
    (tmp_path / "file").touch()
    monkeypatch.setenv("STEPWELL_CACHE_DIR", str(tmp_path / "file" / "cache"))

    # Act / Assert
    assert is_replaced(ours)


def test_the_hash_depends_on_every_source_and_version(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit of any file, a file more, and another compiler give another folder."""
    # Arrange
    package = copied / "core" / "stepwell_core"
    monkeypatch.setattr(cache, "PACKAGE", package)

    def versions(name: str) -> Any:
        return "0.0"

    # Act
    hashes = [cache.source_hash()]
    (package / "errors.py").write_text("# edited")
    hashes.append(cache.source_hash())
    (package / "optimizers" / "new.py").write_text("# new")
    hashes.append(cache.source_hash())
    monkeypatch.setattr("importlib.metadata.version", versions)
    hashes.append(cache.source_hash())

    # Assert
    assert len(set(hashes)) == 4


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("order", [("0", "1"), ("1", "0"), "at once"], ids=str)
def test_kernels_of_several_processes_are_not_confused(tmp_path: Path, order: Any) -> None:
    """Two processes fill one cache with different kernels; a third loads all, and all are right."""
    # Arrange
    program = Path(__file__).with_name("fill_cache.py")
    environment = os.environ | {"STEPWELL_CACHE_DIR": str(tmp_path)}

    def start(what: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(program), what],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    # Act
    if order == "at once":
        processes = [start("0"), start("1")]
        codes = [process.communicate() and process.returncode for process in processes]
    else:
        codes = []
        for what in order:
            process = start(what)
            process.communicate()
            codes.append(process.returncode)
    check = start("check")
    confused = check.communicate()[0]

    # Assert
    assert codes == [0, 0]
    assert check.returncode == 0
    assert confused == ""
