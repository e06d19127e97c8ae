"""An optimizer's rule and the stages around it, as one loop over memory, compiled by Numba.

    decode -> unscale -> accumulate -> clip -> decay -> rule -> EMA -> write

happen for one element after the other, so each array is read and written once. Which stages there
are is fixed when a kernel is composed (`Stages`), so the others cost nothing.

    stages.py      which stages a kernel has, and where its constants lie
    decoding.py    an element of a payload -> a number of the parameter's dtype
    encoding.py    a parameter -> an element of a half-width payload, for pulls
    slots.py       tuples of slots, taken apart and put together
    step.py        the loops that change the model: a step, an accumulation, an average
    reductions.py  the loops that read a gradient: squares, a weighted sum, is it finite
    compiler.py    Numba, and nothing else in core knows it
    cache.py       where compiled kernels are kept

Strict IEEE arithmetic: no `fastmath`, no fused multiply-add, Keras's association. Every scalar
comes in with the parameter's dtype, because a literal would widen float32 to float64.

Three things that look like details and are not, each measured:

- A kernel works on slices and counts from 0: with an offset in the index, Numba's test for negative
  indices keeps LLVM from vectorizing (5 x slower).
- Writing in place is a variant of its own, with one array for reading and writing: two names for
  one array fail the loop's alias check at run time (3 x slower).
- Stages are closures over *plain* functions: a closure over a compiled one misses the on-disk cache
  in every process. The cache then does not notice an edited rule, so its folder is named after a
  hash of all sources of this package; see `cache.py`.
"""

from stepwell_core.kernels.compiler import Kernel
from stepwell_core.kernels.encoding import encode_kernel
from stepwell_core.kernels.reductions import (
    BLOCK_ELEMENTS,
    aggregate_kernel,
    finite_kernel,
    squares_kernel,
)
from stepwell_core.kernels.stages import (
    ACCUMULATION_STEPS,
    CLIP_VALUE,
    CONSTANTS,
    LEARNING_RATE,
    LOSS_SCALE,
    MOMENTUM,
    ONE_MINUS_MOMENTUM,
    WEIGHT_DECAY,
    Stages,
)
from stepwell_core.kernels.step import accumulate_kernel, average_kernel, step_kernel

__all__ = [
    "ACCUMULATION_STEPS",
    "BLOCK_ELEMENTS",
    "CLIP_VALUE",
    "CONSTANTS",
    "LEARNING_RATE",
    "LOSS_SCALE",
    "MOMENTUM",
    "ONE_MINUS_MOMENTUM",
    "WEIGHT_DECAY",
    "Kernel",
    "Stages",
    "accumulate_kernel",
    "aggregate_kernel",
    "average_kernel",
    "encode_kernel",
    "finite_kernel",
    "squares_kernel",
    "step_kernel",
]
