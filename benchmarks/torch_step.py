"""What a step costs that a server makes: a torch module of ResNet-50's tensors, on one host.

`RemoteOptimizer.step` gives the gradients to the server in shared memory, waits for its step, and
copies the new parameters into the module. Beside it torch's own fused Adam makes the same step on
the same tensors. What is left when the server's step, which is that update too, is taken out is the
push and the pull: the price of having the optimizer elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any

from benchmarks import shapes
from benchmarks.measure import Result, at_most, medians, ms, not_measured, shown
from benchmarks.server import serving
from benchmarks.shapes import Shapes

BAR = 2.0
ROUNDS = 25
WARM_UP_STEPS = 3  # kernels are compiled, memory is touched
RATE = 1e-3
CLOSE = 1e-5
"""How far parameters may be apart after all steps, of the largest change."""

WHAT = "a torch step of ResNet-50's tensors on one host: push and pull, against fused Adam"


def run(tensors: Shapes | None = None, rounds: int = ROUNDS) -> Result:
    """Measure everything."""
    if importlib.util.find_spec("torch") is None:
        return Result([not_measured(WHAT, f"<= {BAR:g} x", "torch is not installed")])
    import torch
    from stepwell.integrations.torch import RemoteOptimizer

    torch.manual_seed(0)
    start = {
        name.replace(".", "_"): torch.randn(shape) * 0.05
        for name, shape in (tensors or shapes.resnet50()).items()
    }
    ours, theirs = _module(start), _module(start)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving())
        remote = stack.enter_context(
            RemoteOptimizer(
                ours.named_parameters(),
                model="resnet",
                optimizer=torch.optim.Adam,
                lr=RATE,
                url=server.url,
            )
        )
        local = torch.optim.Adam(theirs.parameters(), lr=RATE, fused=True)
        for _ in range(WARM_UP_STEPS):
            remote.step()
            local.step()
        before = _served(server.url, "resnet")
        seconds = medians({"remote": remote.step, "local": local.step}, rounds)
        total, count = (b - a for a, b in zip(before, _served(server.url, "resnet"), strict=True))
        served = total / count
        _check_close(start, ours, theirs)
    there, here = seconds["remote"], seconds["local"]
    detail = (
        f"step {ms(there)}, of which the server's update {ms(served)} (mean); fused Adam {ms(here)}"
    )
    rows = [
        at_most(WHAT, (there - served) / here, BAR, detail),
        shown("the whole step, against fused Adam", there / here, f"{ms(there)} and {ms(here)}"),
    ]
    return Result(rows, {**seconds, "served": served})


def _module(start: dict[str, Any]) -> Any:
    """Return a module with these parameters, each with a gradient."""
    import torch

    module = torch.nn.Module()
    generator = torch.Generator().manual_seed(1)
    for name, value in start.items():
        parameter = torch.nn.Parameter(value.clone())
        parameter.grad = torch.randn(value.shape, generator=generator)
        module.register_parameter(name, parameter)
    return module


def _served(url: str, model: str) -> tuple[float, float]:
    """Return the seconds that the server has taken for steps, and how many they were."""
    import httpx

    text = httpx.get(f"{url}/metrics", trust_env=False).text
    total, count = (
        float(line.split()[-1])
        for kind in ("sum", "count")
        for line in text.splitlines()
        if line.startswith(f'stepwell_push_apply_seconds_{kind}{{model="{model}"}}')
    )
    return total, count


def _check_close(start: dict[str, Any], ours: Any, theirs: Any) -> None:
    """Raise if the server did not make torch's own steps."""
    modules = [[tensor.detach() for tensor in each.parameters()] for each in (ours, theirs)]
    pairs = list(zip(start.values(), *modules, strict=True))
    change = max(float((b - a).abs().max()) for a, _, b in pairs)
    apart = max(float((a - b).abs().max()) for _, a, b in pairs)
    if not apart <= CLOSE * change:
        raise AssertionError(f"parameters are {apart} apart, and changed by {change}")
