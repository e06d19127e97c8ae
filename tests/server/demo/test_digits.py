"""The digits of the demo: a fixed, stratified split, and batches that their arguments name."""

import numpy as np
import pytest
from stepwell_server.demo.digits import CLASSES, Digits, batch, load_digits_split


@pytest.fixture(scope="module")
def digits() -> Digits:
    """The images, loaded once: no test changes them."""
    return load_digits_split()


def test_every_image_is_either_trained_on_or_held_out(digits: Digits) -> None:
    """The two parts together are the 1,797 images of scikit-learn, each of them once."""
    from sklearn.datasets import load_digits

    expected = load_digits().data.astype(np.float32) / 16

    together = np.concatenate((digits.train_images, digits.test_images))

    assert len(digits.train_labels) == len(digits.train_images) == 1438
    assert len(digits.test_labels) == len(digits.test_images) == 359
    np.testing.assert_array_equal(_sorted_rows(together), _sorted_rows(expected))


def test_labels_stay_with_their_images(digits: Digits) -> None:
    """After the split an image still has the label that scikit-learn gives it."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    label_of = {
        row.tobytes(): int(label)
        for row, label in zip(bunch.data.astype(np.float32) / 16, bunch.target, strict=True)
    }

    found = [label_of[row.tobytes()] for row in digits.test_images]

    np.testing.assert_array_equal(found, digits.test_labels)


def test_one_image_in_five_of_every_digit_is_held_out(digits: Digits) -> None:
    """The split is stratified: no digit has a share far from 20 %."""
    held_out = np.bincount(digits.test_labels, minlength=CLASSES)
    trained_on = np.bincount(digits.train_labels, minlength=CLASSES)

    share = held_out / (held_out + trained_on)

    assert np.all(np.abs(share - 0.2) < 0.004)


def test_images_are_float32_from_0_to_1_and_labels_int64(digits: Digits) -> None:
    """The dtypes and the range are the promised ones."""
    assert digits.train_images.dtype == digits.test_images.dtype == np.float32
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int64
    assert digits.train_images.shape[1:] == digits.test_images.shape[1:] == (64,)
    assert digits.train_images.min() == 0.0
    assert digits.train_images.max() == 1.0


def test_the_split_is_the_same_every_time(digits: Digits) -> None:
    """Loading again gives the same images in the same order."""
    again = load_digits_split()

    assert again.train_images.tobytes() == digits.train_images.tobytes()
    assert again.test_labels.tobytes() == digits.test_labels.tobytes()


def test_the_same_arguments_give_the_same_batch(digits: Digits) -> None:
    """A batch is a function of its arguments, to the bit."""
    first_images, first_labels = batch(digits, 7, 2, 31, 64)
    again_images, again_labels = batch(digits, 7, 2, 31, 64)

    assert first_images.tobytes() == again_images.tobytes()
    assert first_labels.tobytes() == again_labels.tobytes()
    assert first_images.shape == (64, 64)
    assert first_images.dtype == np.float32
    assert first_labels.dtype == np.int64


@pytest.mark.parametrize("other", [(8, 2, 31), (7, 3, 31), (7, 2, 32)])
def test_another_seed_worker_or_step_gives_another_batch(
    digits: Digits, other: tuple[int, int, int]
) -> None:
    """Seed, worker index and step each change what is drawn."""
    images, _ = batch(digits, 7, 2, 31, 64)

    other_images, _ = batch(digits, *other, 64)

    assert images.tobytes() != other_images.tobytes()


def test_a_batch_is_not_a_view_of_the_digits(digits: Digits) -> None:
    """Writing to a batch leaves the images as they were."""
    before = digits.train_images.tobytes()
    images, labels = batch(digits, 0, 0, 0, 1438)

    images[:] = -1.0
    labels[:] = -1

    assert digits.train_images.tobytes() == before
    assert digits.train_labels.min() == 0


def test_a_batch_of_everything_holds_every_label_as_often_as_the_digits(digits: Digits) -> None:
    """Rows are drawn without replacement, and labels are never changed."""
    _, labels = batch(digits, 0, 0, 0, 1438)

    np.testing.assert_array_equal(np.bincount(labels), np.bincount(digits.train_labels))


def test_most_images_of_a_batch_are_close_to_the_original(digits: Digits) -> None:
    """The changes are mild: about four images in five differ from a real one by noise alone."""
    images, _ = batch(digits, 0, 0, 0, 200)

    squares = (
        (images**2).sum(axis=1)[:, None]
        - 2 * images @ digits.train_images.T
        + (digits.train_images**2).sum(axis=1)
    )
    # Noise of 0.1 on 64 pixels has a squared length of 0.64; a shifted digit is several away.
    is_close = squares.min(axis=1) < 1.1

    assert 0.7 < is_close.mean() < 0.95


def _sorted_rows(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T)]
