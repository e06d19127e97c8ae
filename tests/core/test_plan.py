"""Plans: which runs of the arenas a gradient touches."""

from __future__ import annotations

import numpy as np
import pytest
from stepwell_core.layout import Layout, Segment, Tensor
from stepwell_core.optimizers import SGD
from stepwell_core.plan import make_plan, make_runs

LAYOUT = Layout(
    [
        Tensor("a", (2,), "float32"),
        Tensor("b", (3,), "float32"),
        Tensor("c", (4,), "float64"),
        Tensor("d", (0,), "float32"),
        Tensor("e", (5,), "float32"),
    ]
)


def runs_of(names: str, optimizer: SGD, excluded: str = "") -> dict[str, list[list[list[int]]]]:
    """Return the runs of each group, by arena."""
    plan = make_plan(LAYOUT, LAYOUT.select(names), optimizer, set(excluded))
    return {d: [group.runs.tolist() for group in groups] for d, groups in plan.groups.items()}


def test_a_full_gradient_is_one_run_an_arena() -> None:
    """Neighbours are joined, empty tensors on the way included."""
    # Act
    runs = runs_of("abcde", SGD())

    # Assert
    assert runs == {"float32": [[[0, 10, 0]]], "float64": [[[0, 4, 0]]]}


def test_a_partial_gradient_has_its_own_places() -> None:
    """Tensors that are neighbours in the gradient alone are not joined."""
    # Act
    runs = runs_of("ae", SGD())

    # Assert
    assert runs == {"float32": [[[0, 2, 0], [5, 10, 2]]], "float64": []}


def test_tensors_that_do_not_decay_are_a_group_of_their_own() -> None:
    """Decay is decided when the kernel is composed, so it splits the runs."""
    # Act
    runs = runs_of("abe", SGD(weight_decay=0.1), excluded="b")

    # Assert
    assert runs["float32"] == [[[0, 2, 0], [5, 10, 5]], [[2, 5, 2]]]


def test_exclusion_without_decay_splits_nothing() -> None:
    """Nothing decays where there is no weight decay."""
    # Act
    runs = runs_of("abde", SGD(), excluded="b")

    # Assert
    assert runs["float32"] == [[[0, 10, 0]]]


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_each_tensor_is_a_run_where_there_are_norms(clip: str) -> None:
    """A norm is that of one tensor, wherever its neighbours are."""
    # Act
    runs = runs_of("abcd", SGD(**{clip: 1.0}))  # type: ignore[arg-type]

    # Assert
    assert runs == {
        "float32": [[[0, 2, 0], [2, 5, 2], [5, 5, 5]]],
        "float64": [[[0, 4, 0]]],
    }


def test_missing_tensors_are_listed_by_arena() -> None:
    """What has no gradient is carried over, so the plan names it."""
    # Act
    plan = make_plan(LAYOUT, LAYOUT.select("be"), SGD(), ())

    # Assert
    assert {d: [s.tensor.name for s in segments] for d, segments in plan.missing.items()} == {
        "float32": ["a", "d"],
        "float64": ["c"],
    }


def test_clips_are_ones_until_there_is_a_norm() -> None:
    """One row for each run, in the arena's dtype, so that no kernel converts."""
    # Act
    (group,) = make_plan(LAYOUT, LAYOUT, SGD(), ()).groups["float64"]

    # Assert
    assert group.clips.tolist() == [[1.0, 1.0]]
    assert group.clips.dtype == np.float64


def test_neighbours_on_one_side_alone_are_not_joined() -> None:
    """A run is one stretch of the arena and one of the gradient."""
    # Arrange
    one, other = Tensor("a", (2,), "float32"), Tensor("b", (3,), "float32")
    near, far = Segment(other, 2, 5), Segment(other, 7, 10)

    # Act
    runs = [
        make_runs([(Segment(one, 0, 2), Segment(one, 0, 2)), pair]).tolist()
        for pair in [(near, near), (near, far), (far, near)]
    ]

    # Assert
    assert runs == [[[0, 5, 0]], [[0, 2, 0], [2, 5, 7]], [[0, 2, 0], [7, 10, 2]]]


def test_no_segments_are_no_runs() -> None:
    """The shape stays two-dimensional, as kernels index it."""
    # Act
    runs = make_runs([])

    # Assert
    assert runs.shape == (0, 3)
    assert runs.dtype == np.int64
