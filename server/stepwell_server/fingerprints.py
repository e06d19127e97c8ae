"""Works out the fingerprints of large gradients beside what the lane does with them.

The lane looks for NaN and makes the step; another thread reads the same bytes for the fingerprint,
without the GIL. Whoever needs it waits for it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from stepwell_core.placement import extent
from stepwell_core.push import Push

LEAST_BYTES = 1 << 20
"""Below it takes less time than another thread takes to begin."""

_threads = ThreadPoolExecutor(1, "fingerprint")


def with_fingerprint_begun(push: Push) -> Push:
    """Return the push; its fingerprint is being worked out if that takes a while.

    The thread reads the gradient's arrays, and keeps them alive, a moment longer than the push may
    live; what it finds is nobody's then.
    """
    gradient = push.gradient
    if extent(gradient.layout, gradient.dtype) < LEAST_BYTES:
        return push
    return replace(push, fingerprints=_threads.submit(gradient.fingerprint).result)
