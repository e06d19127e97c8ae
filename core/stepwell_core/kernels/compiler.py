"""Numba, with our flags and our cache folder; no other room of core imports it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
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


def compile_kernel(kernel: Kernel, *parts: Kernel, key: object) -> Kernel:
    """Return the kernel that compiles itself when it is first called, or loads from the cache.

    Every kernel and every part gets a name of its own, made of its key. Numba names the code of a
    closure by the closure's name and a number that it counts anew in each process. Where two
    processes fill one cache, two different kernels then have one name, and a process that loads
    both silently runs the first for the second.

    Args:
        kernel: A closure over plain functions.
        parts: The closures among them.
        key: What tells this kernel from all others; its `repr` is the same in every process.

    The folder is set here and not by `NUMBA_CACHE_DIR`: that would come too late where Numba was
    imported before, and child processes would inherit it, though their sources may be others.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest()
    for function in (kernel, *parts):
        function.__name__ = function.__qualname__ = f"{function.__name__}_{digest}"
    inline(*parts)
    with _lock:
        before, _config.CACHE_DIR = _config.CACHE_DIR, str(cache_folder())
        try:
            compiled: Kernel = numba.njit(nogil=True, error_model="numpy", cache=True)(kernel)
        finally:
            _config.CACHE_DIR = before
    _save_one_at_a_time(compiled, cache_folder() / ".lock")
    return compiled


def _save_one_at_a_time(compiled: Any, lock: Path) -> None:
    """Keep processes from writing one index at once: the code of one would go by another's name."""
    cache = compiled._cache
    save = cache.save_overload

    def save_locked(signature: Any, result: Any) -> None:
        with _locked(lock):
            save(signature, result)

    cache.save_overload = save_locked


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:  # closing it unlocks it
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def key_of(update: Kernel) -> str:
    """Return the name of a rule, which is the same in every process."""
    return f"{update.__module__}.{update.__qualname__}"
