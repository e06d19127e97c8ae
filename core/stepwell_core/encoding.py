"""Parameters in half width, as a pull may ask for them: float16 or bfloat16 out of the arenas."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stepwell_core import kernels
from stepwell_core.layout import Arenas, Array, Layout, Tensor
from stepwell_core.plan import make_runs

HALF_DTYPES = ("float16", "bfloat16")


def encode(whole: Layout, arenas: Mapping[str, Array], selection: Layout, dtype: str) -> Arenas:
    """Return the selected tensors in half width, in new arenas; O(bytes), without the GIL.

    float32 comes before float64 as in every payload, both in the same format then.

    Args:
        whole: The layout of `arenas`.
        arenas: The parameters, or a slot; only read.
        selection: `whole`, or some of its tensors.
        dtype: One of `HALF_DTYPES`; see `kernels/encoding.py` for how it is rounded.
    """
    payload = selection.new_payload(dtype)
    for arena_dtype, target in payload.items():
        segments = [
            (whole.segments[name], segment)
            for name, segment in selection.segments.items()
            if segment.tensor.dtype == arena_dtype
        ]
        kernel = kernels.encode_kernel(dtype, arena_dtype)
        kernel(arenas[arena_dtype], target.view(np.uint16), make_runs(segments))
    return payload


def rehearse_encoding(layout: Layout, dtype: str) -> None:
    """Compile what `encode` needs for a layout; takes seconds the first time on a machine."""
    small = Layout(Tensor(arena_dtype, (1,), arena_dtype) for arena_dtype in layout.sizes)
    encode(small, small.new_arenas(), small, dtype)
