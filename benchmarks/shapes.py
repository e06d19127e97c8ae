"""The tensors of models that people know, in order: names and shapes, nothing else."""

from __future__ import annotations

from collections.abc import Iterator

Shapes = dict[str, tuple[int, ...]]


def resnet50() -> Shapes:
    """Return the 161 tensors of ResNet-50: 25,557,032 parameters.

    He et al., 2016, "Deep Residual Learning for Image Recognition", for 1,000 classes; PyTorch's
    order and names, without the running statistics, which no gradient reaches.
    """
    shapes: Shapes = {"conv1": (64, 3, 7, 7)} | _norm("bn1", 64)
    channels = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            shapes |= _bottleneck(f"layer{stage}.{block}", channels, width)
            channels = 4 * width
    return shapes | {"fc.weight": (1000, channels), "fc.bias": (1000,)}


def _bottleneck(name: str, channels: int, width: int) -> Shapes:
    shapes: Shapes = {f"{name}.conv1": (width, channels, 1, 1)} | _norm(f"{name}.bn1", width)
    shapes |= {f"{name}.conv2": (width, width, 3, 3)} | _norm(f"{name}.bn2", width)
    shapes |= {f"{name}.conv3": (4 * width, width, 1, 1)} | _norm(f"{name}.bn3", 4 * width)
    if channels != 4 * width:
        shapes |= {f"{name}.downsample.0": (4 * width, channels, 1, 1)}
        shapes |= _norm(f"{name}.downsample.1", 4 * width)
    return shapes


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def gpt2(layers: int = 36, width: int = 1280, words: int = 50_257, context: int = 1024) -> Shapes:
    """Return the tensors of a GPT-2 with an output head of its own; by default GPT-2 large.

    Radford et al., 2019, "Language Models are Unsupervised Multitask Learners". Large: 437 tensors,
    838,359,040 parameters, 3.35 GB as float32.
    """
    shapes: Shapes = {"wte": (words, width), "wpe": (context, width)}
    for layer in range(layers):
        shapes |= {f"h.{layer}.{name}": shape for name, shape in _gpt2_block(width)}
    return shapes | _norm("ln_f", width) | {"lm_head": (words, width)}


def _gpt2_block(width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for norm in ("ln_1", "ln_2"):
        yield from _norm(norm, width).items()
    for name, inputs, outputs in (
        ("attn.c_attn", width, 3 * width),
        ("attn.c_proj", width, width),
        ("mlp.c_fc", width, 4 * width),
        ("mlp.c_proj", 4 * width, width),
    ):
        yield f"{name}.weight", (inputs, outputs)
        yield f"{name}.bias", (outputs,)
