"""Names: what may name a model, worker, checkpoint or tensor, and what may not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwell_core.errors import InvalidName
from stepwell_core.names import (
    IDENTIFIER,
    MAX_TENSOR_NAME_LENGTH,
    RESERVED_TENSOR_NAME,
    check_identifier,
    check_tensor_name,
)


@pytest.mark.parametrize("name", ["a", "0", "digits", "w-0", "a.b_c-d", "a..b", "x" * 64])
def test_an_identifier_is_taken(name: str) -> None:
    """Letters, digits, dot, underscore and hyphen, 64 at most."""
    # Act
    checked = check_identifier(name, "model")

    # Assert
    assert checked == name


@pytest.mark.parametrize(
    "name",
    ["", "A", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a\n", "a\0", "ä", "x" * 65, "a%2e",
     None, 7, b"a", ["a"], True],
)  # fmt: skip
def test_what_could_leave_a_folder_is_no_identifier(name: object) -> None:
    """Path parts, control characters, other alphabets and other types are refused."""
    # Act
    with pytest.raises(InvalidName) as refusal:
        check_identifier(name, "worker")

    # Assert
    assert refusal.value.message.startswith("A worker name has")
    assert refusal.value.details == {"pattern": IDENTIFIER}


@given(name=st.text())
def test_an_identifier_matches_the_published_pattern(name: str) -> None:
    """Every name that is taken matches `IDENTIFIER` from end to end, and no other does."""
    # Arrange
    matches = re.fullmatch(IDENTIFIER.strip("^$"), name) is not None

    # Act
    try:
        taken = check_identifier(name, "model") == name
    except InvalidName:
        taken = False

    # Assert
    assert taken is matches


@pytest.mark.parametrize(
    "name",
    ["kernel", "dense_1/kernel:0", "encoder.layers.3.weight", "a b", "гамма", "..a/b..", ".",
     "x" * MAX_TENSOR_NAME_LENGTH],
)  # fmt: skip
def test_names_of_other_frameworks_name_tensors(name: str) -> None:
    """A tensor's name is wide: it never becomes a path."""
    # Act
    checked = check_tensor_name(name)

    # Assert
    assert checked == name


@pytest.mark.parametrize(
    "name",
    ["", "/kernel", "..", "a/../b", "../a", "a\nb", "a\0", "\ud800", RESERVED_TENSOR_NAME,
     "x" * (MAX_TENSOR_NAME_LENGTH + 1), None, 3, b"kernel", ("kernel",)],
)  # fmt: skip
def test_a_tensor_name_that_could_mislead_is_refused(name: object) -> None:
    """Absolute and climbing paths, unprintable, reserved and oversized names, other types."""
    # Act
    with pytest.raises(InvalidName) as refusal:
        check_tensor_name(name)

    # Assert
    assert "Received: " in refusal.value.message


def test_a_huge_name_makes_a_short_error() -> None:
    """The error shows the beginning of a name and not a megabyte of it."""
    # Act
    with pytest.raises(InvalidName) as refusal:
        check_tensor_name("x" * 10**6)

    # Assert
    assert len(refusal.value.message) < 350
