"""Environments of peers that cannot be made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import contenders
from benchmarks.peers import environments, suite
from benchmarks.peers.environments import ENVIRONMENTS, Environment, NotInstalled

OURS = (contenders.HTTP, contenders.MEMORY, contenders.IN_PLACE)


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path)


def test_a_peer_for_another_python_is_not_installed() -> None:
    """The reason is what is missing."""
    with pytest.raises(NotInstalled, match=r"needs Python 2\.0"):
        Environment("mxnet_kvstore", ("mxnet",), python="2.0").install()


def test_what_pip_says_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A requirement that nobody can read is refused without a network."""
    with pytest.raises(NotInstalled, match="not a requirement"):
        Environment("mxnet_kvstore", ("not a requirement",)).install()


def test_a_peer_that_is_missing_is_shown_and_fails_nothing() -> None:
    """Its rows are not measured, with the reason beside them, and no bar of it is met."""
    ours = {f"{name}/{way}": 0.01 for name in OURS for way in ("push", "pull", "small")}

    rows = suite.rows(ours, {contenders.RAY: "not installed: no room"})

    about_ray = [row for row in rows if "Ray" in row.what]
    assert len(about_ray) == 3
    assert {row.measured for row in rows} == {"not measured"}
    assert {row.is_met for row in rows} == {None}
    assert {row.detail for row in about_ray} == {"not installed: no room"}


def test_every_peer_has_its_program_and_its_pins() -> None:
    """And no pin names a place: packages come by name, from the index of whoever runs it."""
    folder = Path(environments.__file__).parent

    for each in ENVIRONMENTS:
        pins = (folder / "constraints" / f"{each.name}.txt").read_text()
        assert (folder / f"{each.name}.py").exists()
        assert "/" not in pins
        assert all(f"{name}==" in pins.replace("_", "-") for name in each.requirements)
