"""The picture of a run is a PNG of a fixed size, whatever the history holds."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from stepwell_server.demo.picture import SIZE_PIXELS, Evaluation, History, Push, draw


def _run(workers: int = 4, versions: int = 120) -> History:
    random = np.random.default_rng(0)
    pushes = [
        Push(
            version=version,
            seconds=version / 500,
            worker=f"worker-{version % workers}",
            loss=float(2.3 * np.exp(-version / 20) + 0.01 * random.random()),
        )
        for version in range(1, versions + 1)
    ]
    evaluations = [
        Evaluation(version=version, seconds=version / 500, accuracy=1 - 0.9 / (1 + version))
        for version in range(0, versions + 1, 20)
    ]
    return History(pushes, evaluations)


def _size_of_png(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def _ink(path: Path) -> float:
    """The share of pixels that are not white."""
    from matplotlib.image import imread

    return float((imread(path)[..., :3].min(axis=2) < 0.95).mean())


def test_a_run_is_drawn_as_a_png_of_the_promised_size(tmp_path: Path) -> None:
    """The file has the PNG signature and the documented width and height."""
    path = tmp_path / "training.png"

    draw(path, _run(), "Stepwell demo", "4 workers")

    assert _size_of_png(path) == SIZE_PIXELS
    assert _ink(path) > 0.01


def test_an_empty_history_gives_a_picture_that_says_so(tmp_path: Path) -> None:
    """Nothing pushed is not an error: there is a sentence where the curves would be."""
    empty, without_title = tmp_path / "empty.png", tmp_path / "without_title.png"

    draw(empty, History([], []), "Stepwell demo", "4 workers")
    draw(without_title, History([], []), "", "")

    assert _size_of_png(empty) == SIZE_PIXELS
    assert 0 < _ink(without_title) < _ink(empty)


def test_the_same_history_gives_the_same_bytes(tmp_path: Path) -> None:
    """No clock and no chance goes into a picture."""
    first, again = tmp_path / "first.png", tmp_path / "again.png"

    draw(first, _run(), "Stepwell demo", "4 workers")
    draw(again, _run(), "Stepwell demo", "4 workers")

    assert first.read_bytes() == again.read_bytes()


def test_the_order_of_the_records_does_not_matter(tmp_path: Path) -> None:
    """Records of four workers arrive in any order; the curves follow the versions."""
    run = _run()
    in_order, reversed_order = tmp_path / "in_order.png", tmp_path / "reversed.png"

    draw(in_order, run, "Stepwell demo", "4 workers")
    draw(
        reversed_order,
        History(run.pushes[::-1], run.evaluations[::-1]),
        "Stepwell demo",
        "4 workers",
    )

    difference = _pixels(in_order) - _pixels(reversed_order)
    # Dots of one worker that overlap are painted in their order, which may tint a few pixels.
    assert np.mean(np.abs(difference) > 0.02) < 0.001


@pytest.mark.parametrize(
    "history",
    [
        pytest.param(History(_run(versions=1).pushes, []), id="one push"),
        pytest.param(History([], _run(versions=1).evaluations), id="one evaluation at version 0"),
        pytest.param(_run(workers=12), id="more workers than colours"),
        pytest.param(
            History(
                [
                    Push(version=1, seconds=0.0, worker="w", loss=math.nan),
                    Push(version=2, seconds=0.0, worker="w", loss=math.inf),
                ],
                [],
            ),
            id="only losses that are not finite",
        ),
        pytest.param(
            History([Push(version=1, seconds=0.0, worker="w" * 60, loss=0.0)], []),
            id="a loss of zero from a worker with a long name",
        ),
        pytest.param(
            History([Push(version=1, seconds=0.0, worker="_$w_{$", loss=1e30)], []),
            id="an enormous loss from a worker whose name looks like mathematics",
        ),
    ],
)
def test_an_unusual_history_is_drawn_without_a_warning(tmp_path: Path, history: History) -> None:
    """Short, broken and crowded runs give a picture too; a warning would fail this test."""
    path = tmp_path / "training.png"

    draw(path, history, "Stepwell demo", "cost: $_{$")

    assert _size_of_png(path) == SIZE_PIXELS


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """The caller makes the folder; a picture never vanishes in silence."""
    with pytest.raises(FileNotFoundError):
        draw(tmp_path / "nowhere" / "training.png", _run(), "Stepwell demo", "4 workers")


def _pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path), dtype=np.float64)
