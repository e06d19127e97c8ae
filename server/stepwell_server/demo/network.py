"""The network of the demo: a perceptron 64-256-128-10, forward and backward in NumPy.

With x the images (one a row), W_k the kernels and b_k the biases of the three dense layers:

    a_0 = x
    z_k = a_{k-1} W_k + b_k
    a_k = max(z_k, 0)                        for the hidden layers
    p   = softmax(z_3)
    L   = -mean_i log p[i, label_i]          cross-entropy

Everything is computed in the dtype of the parameters and images: float32 in training, float64
where a test compares with finite differences. With one BLAS thread the result of a call depends
on its arguments alone, to the bit.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Labels: TypeAlias = NDArray[np.int64]

LAYER_SIZES = (64, 256, 128, 10)
LAYERS = ("dense_1", "dense_2", "dense_3")


def initial_parameters(seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw new parameters: kernels from N(0, 2 / inputs) (He et al. 2015), biases zero.

    Returns:
        Six float32 arrays, 50,826 numbers in all: "dense_1/kernel" of shape [64, 256],
        "dense_1/bias" of shape [256], and so on in the order of the layers.
    """
    random = np.random.default_rng(seed)
    parameters: dict[str, NDArray[np.float32]] = {}
    for layer, (inputs, outputs) in zip(LAYERS, pairwise(LAYER_SIZES), strict=True):
        kernel = random.normal(0.0, np.sqrt(2.0 / inputs), size=(inputs, outputs))
        parameters[f"{layer}/kernel"] = kernel.astype(np.float32)
        parameters[f"{layer}/bias"] = np.zeros(outputs, dtype=np.float32)
    return parameters


def loss_and_gradients(
    parameters: Mapping[str, Floats], images: Floats, labels: Labels
) -> tuple[float, dict[str, Floats]]:
    """Compute L and its gradient by every parameter, for a batch of n images.

    Backward, with y the labels as one-hot rows:

        d_3     = (p - y) / n                = dL/dz_3
        dL/dW_k = a_{k-1}^T d_k
        dL/db_k = sum over the rows of d_k
        d_{k-1} = (d_k W_k^T) * [a_{k-1} > 0]

    Returns:
        The loss, and new arrays with the names, shapes and order of `parameters`.
    """
    *activations, logits = _forward(parameters, images)
    log_p = _log_softmax(logits)
    rows = np.arange(len(labels))
    loss = -float(log_p[rows, labels].mean())

    delta = np.exp(log_p)
    delta[rows, labels] -= 1.0
    delta /= len(labels)
    gradients: dict[str, Floats] = {}
    for layer, activation in zip(reversed(LAYERS), reversed(activations), strict=True):
        gradients[f"{layer}/kernel"] = activation.T @ delta
        gradients[f"{layer}/bias"] = delta.sum(axis=0)
        if layer != LAYERS[0]:
            delta = (delta @ parameters[f"{layer}/kernel"].T) * (activation > 0)
    return loss, {name: gradients[name] for name in parameters}


def accuracy(parameters: Mapping[str, Floats], images: Floats, labels: Labels) -> float:
    """Compute the share of images, 0..1, whose largest logit is the one of their label."""
    logits = _forward(parameters, images)[-1]
    return float(np.mean(logits.argmax(axis=1) == labels))


def _forward(parameters: Mapping[str, Floats], images: Floats) -> list[Floats]:
    """Return a_0, a_1, a_2 and the logits z_3."""
    activations = [images]
    for layer in LAYERS:
        z = activations[-1] @ parameters[f"{layer}/kernel"] + parameters[f"{layer}/bias"]
        activations.append(z if layer == LAYERS[-1] else np.maximum(z, 0))
    return activations


def _log_softmax(logits: Floats) -> Floats:
    """Log p = z - log(sum(exp(z))), with z moved below zero first so that exp cannot overflow."""
    z = logits - logits.max(axis=1, keepdims=True)
    shifted: Floats = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return shifted
