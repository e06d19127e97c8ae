"""The network of the demo: its gradient is the derivative of its loss, and it is deterministic."""

import numpy as np
import pytest
from stepwell_server.demo.network import accuracy, initial_parameters, loss_and_gradients

NAMES = [f"dense_{layer}/{part}" for layer in (1, 2, 3) for part in ("kernel", "bias")]


def _batch(count: int = 12, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.random((count, 64)), random.integers(0, 10, count)


def _constant(digit: int) -> dict[str, np.ndarray]:
    """Parameters that answer the same digit to every image."""
    parameters = {name: np.zeros_like(array) for name, array in initial_parameters(0).items()}
    parameters["dense_3/bias"][digit] = 1.0
    return parameters


@pytest.mark.parametrize("name", NAMES)
def test_gradient_equals_finite_differences(name: str) -> None:
    """In float64, the gradient of drawn elements is the central difference of the loss."""
    images, labels = _batch()
    random = np.random.default_rng(1)
    parameters = {
        key: array + 0.05 * random.standard_normal(array.shape)
        for key, array in initial_parameters(0).items()
    }
    _, gradients = loss_and_gradients(parameters, images, labels)
    step = 1e-6

    for index in random.choice(parameters[name].size, size=10, replace=False):
        moved_losses = []
        for move in (step, -step):
            moved = {key: array.copy() for key, array in parameters.items()}
            moved[name].flat[index] += move
            moved_losses.append(loss_and_gradients(moved, images, labels)[0])
        difference = (moved_losses[0] - moved_losses[1]) / (2 * step)

        assert gradients[name].flat[index] == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_gradients_have_the_names_shapes_dtypes_and_order_of_the_parameters() -> None:
    """A gradient can be pushed as it is: float32, contiguous, one for each parameter."""
    parameters = initial_parameters(0)
    images, labels = _batch()

    _, gradients = loss_and_gradients(parameters, images.astype(np.float32), labels)

    assert list(gradients) == list(parameters) == NAMES
    for name, gradient in gradients.items():
        assert gradient.shape == parameters[name].shape
        assert gradient.dtype == np.float32
        assert gradient.flags.c_contiguous


def test_loss_of_a_network_that_knows_nothing_is_the_logarithm_of_ten() -> None:
    """With equal logits each of the ten digits has probability 0.1."""
    parameters = {name: np.zeros_like(array) for name, array in initial_parameters(0).items()}
    images, labels = _batch()

    loss, _ = loss_and_gradients(parameters, images, labels)

    assert loss == pytest.approx(np.log(10))


def test_huge_logits_do_not_overflow() -> None:
    """The softmax is computed below zero: a logit of 1e4 gives a finite loss and gradient."""
    parameters = _constant(3)
    parameters["dense_3/bias"] *= np.float32(1e4)
    images, _ = _batch()

    right, _ = loss_and_gradients(parameters, images, np.full(12, 3))
    wrong, gradients = loss_and_gradients(parameters, images, np.full(12, 4))

    assert right == 0.0
    assert wrong == pytest.approx(1e4)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_the_same_inputs_give_the_same_bits() -> None:
    """Loss and gradients are a function of parameters, images and labels."""
    parameters = initial_parameters(3)
    images, labels = _batch(64)
    images = images.astype(np.float32)

    first_loss, first = loss_and_gradients(parameters, images, labels)
    again_loss, again = loss_and_gradients(parameters, images, labels)

    assert first_loss == again_loss
    assert all(first[name].tobytes() == again[name].tobytes() for name in NAMES)


def test_parameters_and_images_are_left_as_they_were() -> None:
    """A gradient is computed beside its inputs, never in them; read-only inputs are enough."""
    parameters = initial_parameters(3)
    images, labels = _batch()
    for array in (*parameters.values(), images, labels):
        array.flags.writeable = False

    loss_and_gradients(parameters, images, labels)


def test_initial_parameters_follow_from_the_seed() -> None:
    """One seed gives one set of parameters, another seed another."""
    first, again, other = (initial_parameters(seed) for seed in (0, 0, 1))

    assert all(first[name].tobytes() == again[name].tobytes() for name in NAMES)
    assert first["dense_1/kernel"].tobytes() != other["dense_1/kernel"].tobytes()
    assert sum(array.size for array in first.values()) == 50_826
    assert all(array.dtype == np.float32 for array in first.values())


def test_accuracy_of_a_constant_predictor_is_the_share_of_its_digit() -> None:
    """A network that always answers 3 is right exactly where the label is 3."""
    images, _ = _batch(8)
    labels = np.array([3, 1, 3, 4, 5, 9, 2, 6])

    share = accuracy(_constant(3), images, labels)

    assert share == 0.25


def test_accuracy_of_a_perfect_predictor_is_one() -> None:
    """A network that passes the first ten pixels through recognises one lit pixel."""
    parameters = {name: np.zeros_like(array) for name, array in initial_parameters(0).items()}
    for layer in (1, 2, 3):
        np.fill_diagonal(parameters[f"dense_{layer}/kernel"], 1.0)
    labels = np.arange(10)
    images = np.eye(10, 64)

    assert accuracy(parameters, images, labels) == 1.0
    assert accuracy(parameters, images, (labels + 1) % 10) == 0.0
