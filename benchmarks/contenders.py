"""The names of those who push and pull 102 MB, in tables, in JSON and in the picture.

A time has the name of its contender and what it does: `torch RPC/push`.
"""

from __future__ import annotations

from collections.abc import Mapping

HTTP = "Stepwell, HTTP"
MEMORY = "Stepwell, same host"
IN_PLACE = "Stepwell, same host, in place"
RAW = "raw socket"
NAIVE = "FastAPI + httpx, naive"
TORCH = "torch RPC"
MXNET = "MXNet KVStore"
TENSORFLOW = "TensorFlow PS"
RAY = "Ray actor, same host"


def push_pull_s(seconds: Mapping[str, float], name: str) -> float | None:
    """Return the seconds of a push and a pull, or None if they were not measured."""
    if f"{name}/push_pull" in seconds:
        return seconds[f"{name}/push_pull"]
    if f"{name}/push" in seconds and f"{name}/pull" in seconds:
        return seconds[f"{name}/push"] + seconds[f"{name}/pull"]
    return None
