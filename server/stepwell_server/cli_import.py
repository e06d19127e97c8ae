"""`stepwell checkpoint import`: what is in safetensors files, as a model takes it over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell_core.errors import DtypeMismatch, InvalidInput, UnknownTensor

if TYPE_CHECKING:  # not needed by a server that starts
    import stepwell

DTYPES = ("F32", "F64")
"""What a model can have, as safetensors calls it. NumPy lacks some of the others."""


def read_tensors(files: Sequence[Path]) -> dict[str, Any]:
    """Return all tensors of the files by name; the caller owns the arrays.

    All names are looked at before any content is read.

    Raises:
        InvalidInput: A file is no safetensors file, or a tensor is in two.
        DtypeMismatch: A tensor is neither float32 nor float64.
    """
    from safetensors.numpy import load_file

    places: dict[str, Path] = {}
    for file in files:
        for name in _names(file):
            if name in places:
                raise InvalidInput(
                    f"Tensor {name!r} is in {places[name]} and in {file}; an import has each "
                    "once, so leave one of the files out. Nothing changed"
                )
            places[name] = file
    arrays: dict[str, Any] = {}
    for file in files:
        with _readable(file):
            arrays |= load_file(file)
    return arrays


def _names(file: Path) -> list[str]:
    """Return the names of a file's tensors, each of a type that a model can have."""
    from safetensors import safe_open

    with _readable(file), safe_open(file, "numpy") as opened:
        names = list(opened.keys())
        for name in names:
            dtype = opened.get_slice(name).get_dtype()
            if dtype not in DTYPES:
                raise DtypeMismatch(
                    f"A model has tensors of float32 and float64. Received: {name!r} of {dtype} in "
                    f"{file}; convert it. Nothing changed"
                )
    return names


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Say in our words that a file is no safetensors file."""
    from safetensors import SafetensorError

    try:
        yield
    except FileNotFoundError:
        raise InvalidInput(f"There is no file {file}; nothing changed") from None
    except (OSError, SafetensorError) as error:
        raise InvalidInput(
            f"An import is of safetensors files. {file} cannot be read as one "
            f"({type(error).__name__}); nothing changed"
        ) from None


def take_over(
    model: stepwell.Model, arrays: Mapping[str, Any], iterations: int | None = None
) -> int:
    """Have a model take over arrays, and return its version.

    Args:
        model: On the server.
        arrays: By the name of a parameter, or else `<slot>/<parameter>`.
        iterations: Steps made so far, Keras's counter; None leaves it.

    Raises:
        UnknownTensor: A name is neither.
        StepwellError: As `Model.import_state`.
    """
    parameters: dict[str, Any] = {}
    slots: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        slot, _, parameter = name.partition("/")
        if name in model.layout.segments:
            parameters[name] = array
        elif parameter in model.layout.segments:
            slots.setdefault(slot, {})[parameter] = array
        else:
            raise UnknownTensor(
                f"{name!r} is neither a parameter of model {model.name!r} nor a slot of one, such "
                "as momentum/<parameter>"
            )
    return model.import_state(parameters or None, slots or None, iterations)
