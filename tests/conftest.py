"""What holds for every test: one thread a library, Keras on NumPy, Ctrl-C, and what is drawn."""

import os
import signal
import threading

import pytest

# These are read when NumPy, Keras or JAX is first imported, so they stand before other imports.
# One BLAS thread: sums in one order, and test processes that do not fight over two cores.
for _name in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_name}_NUM_THREADS", "1")
os.environ.setdefault("KERAS_BACKEND", "numpy")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from hypothesis import settings

# What a shell starts in the background ignores Ctrl-C, and so would all that tests start; a handler
# is not inherited.
_is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
if _is_ignored and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the first example of a kernel pays for its compilation.
settings.register_profile("local", deadline=None)
# In CI the same examples every time: a red run is red again on the desk (CI=true make test).
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: at the end one process would run them alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
