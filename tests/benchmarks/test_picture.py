"""The picture of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import picture, report
from benchmarks.contenders import HTTP, MXNET, NAIVE
from benchmarks.measure import Result

SECONDS = {
    f"{HTTP}/push": 0.045,
    f"{HTTP}/pull": 0.028,
    f"{NAIVE}/push": 0.5,
    f"{NAIVE}/pull": 0.3,
    f"{MXNET}/push_pull": 0.2,
}


@pytest.mark.parametrize("suite", ["peers", "wire.large"])
def test_the_picture_is_drawn_from_results_alone(suite: str, tmp_path: Path) -> None:
    """From either suite, with whoever took part; no other run is needed."""
    document = report.to_json({suite: Result([], SECONDS)})

    picture.draw(document, tmp_path / "bars.png")

    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_the_peers_are_shown_before_ours_alone() -> None:
    """Both suites have ours; only one has the peers."""
    ours = {name: value for name, value in SECONDS.items() if MXNET not in name}
    document = report.to_json({"wire.large": Result([], ours), "peers": Result([], SECONDS)})

    assert [bar.name for bar in picture.bars(document)] == [HTTP, MXNET, NAIVE]


def test_results_of_other_suites_have_no_picture() -> None:
    """The update alone has no pushes."""
    assert not picture.bars(report.to_json({"update": Result([], {"ours": 0.01})}))
