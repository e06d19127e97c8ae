"""The error tree: what is drawn is what there is."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from stepwell_core import errors
from stepwell_core.errors import StepwellError, by_code, every_error, shown


def drawn_tree() -> dict[str, str | None]:
    """Return each class of the drawing in the module's docstring, with its parent."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^ {4}([│├└─ ]*)([A-Z]\w+)(?: {2,}|$)", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            parents[match[2]] = path[depth - 1] if depth else None
    return parents


def own_errors() -> list[type[StepwellError]]:
    """Return the classes of the module, without those that tests or other packages add."""
    return [error for error in every_error() if error.__module__ == errors.__name__]


def test_the_drawing_is_the_tree() -> None:
    """The docstring draws every class below its parent, and none that does not exist."""
    # Act
    real = {
        error.__name__: None if error is StepwellError else error.__bases__[0].__name__
        for error in own_errors()
    }

    # Assert
    assert drawn_tree() == real


def test_every_error_has_a_code_of_its_own() -> None:
    """No two classes share a code, and none inherits its parent's."""
    # Act
    codes = Counter(error.code for error in own_errors())

    # Assert
    assert [code for code, count in codes.items() if count > 1] == []


def test_a_code_is_the_class_in_snake_case() -> None:
    """Who sees a code in a log finds the class."""
    # Act
    odd = {
        error.__name__: error.code
        for error in own_errors()[1:]
        if error.code.replace("_", "") != error.__name__.lower()
    }

    # Assert
    assert odd == {}


def test_a_code_leads_back_to_its_class() -> None:
    """The client raises what the server meant."""
    # Act
    classes = by_code()

    # Assert
    assert all(classes[error.code] is error for error in own_errors())


def test_every_error_says_what_it_is() -> None:
    """Each class has a sentence of its own."""
    # Act
    sentences = [(error.__doc__ or "").partition("\n")[0] for error in own_errors()]

    # Assert
    assert all(sentence.endswith(".") for sentence in sentences)
    assert len(set(sentences)) == len(sentences)


def test_message_and_details_are_kept() -> None:
    """`details` travel in the problem document beside the message."""
    # Act
    error = errors.ShapeMismatch("no", tensor="kernel", expected=[2])

    # Assert
    assert str(error) == error.message == "no"
    assert error.details == {"tensor": "kernel", "expected": [2]}


def test_an_invalid_argument_is_a_value_error() -> None:
    """Code that catches what Keras raises catches it too."""
    # Act
    error = errors.InvalidArgument("no")

    # Assert
    assert isinstance(error, ValueError)
    assert isinstance(error, errors.InvalidInput)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("kernel", "'kernel'"),
        (None, "None"),
        ([1, 2], "[1, 2]"),
        (10**5000, "<int too long to show>"),
        ([[[]] * 10] * 10, "[[[], "),
    ],
    ids=["string", "none", "list", "integer", "nest"],
)
def test_values_are_shown_as_they_came(value: object, text: str) -> None:
    """Short values are shown whole."""
    # Act
    actual = shown(value)

    # Assert
    assert actual.startswith(text)


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, [0] * 10**6, dict.fromkeys(range(100), "y" * 100), [["z" * 1000] * 1000] * 1000],
    ids=["string", "list", "map", "nest"],
)
def test_large_values_are_shown_in_one_short_line(value: object) -> None:
    """An error is never larger than a line, whatever a stranger sent."""
    # Act
    text = shown(value)

    # Assert
    assert len(text) <= 160
    assert "..." in text
