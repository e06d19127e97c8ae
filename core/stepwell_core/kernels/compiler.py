"""Numba, with our flags and our cache folder; no other room of core imports it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba
from numba.extending import register_jitable

from stepwell_core.kernels.cache import cache_folder

Kernel = Callable[..., Any]

_config: Any = numba.config  # made of settings at run time, so it has no types
_lock = threading.Lock()


def inline(*functions: Kernel) -> None:
    """Let compiled kernels call these plain functions; they stay plain functions."""
    for function in functions:
        register_jitable(function)


def compile_kernel(kernel: Kernel) -> Kernel:
    """Return the kernel that compiles itself when it is first called, or loads from the cache.

    The folder is set here and not by `NUMBA_CACHE_DIR`: that would come too late where Numba was
    imported before, and child processes would inherit it, though their sources may be others.
    """
    with _lock:
        before, _config.CACHE_DIR = _config.CACHE_DIR, str(cache_folder())
        try:
            compiled: Kernel = numba.njit(nogil=True, error_model="numpy", cache=True)(kernel)
        finally:
            _config.CACHE_DIR = before
    return compiled
