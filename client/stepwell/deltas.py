"""What local steps have added to the parameters: `delta = local - pulled`, tensor by tensor.

A server takes `-delta` as a gradient, the *pseudo-gradient*. Source: Reddi et al., 2021, "Adaptive
Federated Optimization", algorithm 1, where the delta of a client is this one, and the server's
optimizer may be any.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from stepwell_core.errors import DtypeMismatch, InvalidInput, LayoutMismatch, shown
from stepwell_core.layout import Array, Layout, Tensor

from stepwell.tensors import check_shape, gradients_of

LOCAL_DTYPES = ("float16", "float32", "float64")


def delta_of(
    local: Mapping[str, Any],
    pulled: Mapping[str, Array],
    layout: Layout,
    out: Mapping[str, Array],
    state: Collection[str] = (),
) -> Mapping[str, Array]:
    """Write `local - pulled` into `out`, and return that; O(elements), no other array is made.

    Args:
        local: The parameters after local steps; anything NumPy can view, only read.
        pulled: The parameters before them, as they were pulled; only read.
        layout: Of the model.
        out: An array for each tensor, in its parameter's shape and dtype; undefined after an error.
        state: Names of tensors that are not optimized, and of which there is no delta.

    Returns:
        The arrays of `out` that were written.

    Raises:
        LayoutMismatch, ShapeMismatch, DtypeMismatch: `local` is not exactly what was pulled.
        InvalidInput: There is nothing to subtract, or `local` lies in the very memory of `pulled`.
    """
    arrays, _ = gradients_of(local)
    _check_names(arrays, pulled, layout, state)
    selection = layout.select(arrays) if state else layout
    for tensor in selection:
        name = tensor.name
        check_shape(arrays[name], tensor, "local parameter")
        _check_dtypes(tensor, arrays[name], pulled[name])
        if np.may_share_memory(arrays[name], pulled[name]):
            raise InvalidInput(
                f"Local steps are made on copies of what was pulled, which is subtracted. Received "
                f"for {name!r} the very memory that `pull` returned, or wrote to; copy before the "
                "first step: {name: array.copy() for name, array in pulled.items()}",
                tensor=name,
            )
    with np.errstate(all="ignore"):  # NaN and infinity are the server's to judge
        for name in selection.names:
            np.subtract(arrays[name], pulled[name], out=out[name], casting="same_kind")
    return {name: out[name] for name in selection.names} if state else out


def _check_names(
    arrays: Mapping[str, Array],
    pulled: Mapping[str, Array],
    layout: Layout,
    state: Collection[str],
) -> None:
    if pulled.keys() != layout.segments.keys():
        raise InvalidInput(
            "A delta needs the arrays that were pulled. Received after a pull with `into`, which "
            "leaves none; push `local - pulled` with kind='delta'"
        )
    if arrays.keys() != pulled.keys() - set(state):
        missing = [name for name in layout.names if name not in arrays and name not in state]
        unknown = [shown(name) for name in arrays if name not in layout.segments]
        raise LayoutMismatch(
            "Local parameters have the names of those that were pulled, and no others. Missing: "
            f"{missing[:8]}; unknown: {unknown[:8]}",
            missing=missing[:16],
            unknown=unknown[:16],
        )


def _check_dtypes(tensor: Tensor, local: Array, pulled: Array) -> None:
    if pulled.dtype.name != tensor.dtype:
        raise DtypeMismatch(
            f"A delta is made from parameters of their own dtypes. {tensor.name!r} was pulled as "
            f"{pulled.dtype}, and is {tensor.dtype}; pull without `dtype`",
            tensor=tensor.name,
            expected=tensor.dtype,
            received=str(pulled.dtype),
        )
    if local.dtype.name not in LOCAL_DTYPES:
        raise DtypeMismatch(
            f"Local parameters are {', '.join(LOCAL_DTYPES)}. Received: {local.dtype} for "
            f"{tensor.name!r}; bfloat16 of torch becomes float32 by .float()",
            tensor=tensor.name,
            expected=tensor.dtype,
            received=str(local.dtype),
        )
