"""Tests of `stepwell.optimizers`: ours, Keras's, Keras's JSON, and callables."""

from __future__ import annotations

import pytest
import stepwell
from stepwell.errors import InvalidArgument
from stepwell.optimizers import as_optimizer, callables_of, rule_of, without_callables
from stepwell.push_numbers import values_of
from stepwell_core.optimizers import PerPush

# Keras's own variables do not know NumPy's newest keyword yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")


@pytest.fixture(scope="module")
def keras():
    """Return Keras, the oracle."""
    return pytest.importorskip("keras")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (stepwell.SGD(0.5), stepwell.SGD(0.5)),
        ("Adam", stepwell.Adam()),
        ("adagrad", stepwell.Adagrad()),
        ({"class_name": "SGD", "config": {"learning_rate": 0.5}}, stepwell.SGD(0.5)),
        ({"class_name": "SGD", "config": {"learning_rate": 1}}, stepwell.SGD(1.0)),
    ],
)
def test_an_optimizer_may_be_said_in_several_ways(value, expected):
    """Ours, a class's name, Keras's short form."""
    assert as_optimizer(value) == expected


@pytest.mark.parametrize("value", [None, 3, object(), stepwell.SGD, [stepwell.SGD(0.1)]])
def test_what_is_no_optimizer_is_refused(value):
    """The sentence names the type that was received."""
    with pytest.raises(InvalidArgument, match="`optimizer` is a Stepwell optimizer"):
        as_optimizer(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (stepwell.SGD, "Received: the class SGD; make an instance of it"),
        (type("Adam", (), {"__module__": "torch.optim.adam"}), "the class Adam of torch; .*torch"),
        (type("Tuple", (), {"__module__": "optax._src.base"})(), "Tuple of optax, .*stepwell.Adam"),
        (3, "Received: int$"),
    ],
)
def test_what_is_no_optimizer_is_told_what_to_take_instead(value, words):
    """People come from torch and optax, and forget to call a class."""
    with pytest.raises(InvalidArgument, match=words):
        as_optimizer(value)


@pytest.mark.oracle
def test_a_live_keras_optimizer_is_the_same_as_ours(keras):
    """Every argument goes through, and so does the serialized form."""
    live = keras.optimizers.Adam(
        learning_rate=0.25,
        beta_1=0.5,
        amsgrad=True,
        weight_decay=0.125,
        global_clipnorm=2.0,
        name="adam",  # else Keras counts
    )
    ours = stepwell.Adam(
        0.25, 0.5, amsgrad=True, weight_decay=0.125, global_clipnorm=2.0, name="adam"
    )

    assert as_optimizer(live) == ours
    assert as_optimizer(keras.optimizers.serialize(live)) == ours


@pytest.mark.oracle
def test_a_live_schedule_goes_along(keras):
    """A Keras schedule becomes ours of the same name."""
    live = keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9))

    optimizer = as_optimizer(live)

    assert optimizer.learning_rate == stepwell.schedules.ExponentialDecay(
        0.5, 10, 0.9, name=optimizer.learning_rate.name
    )


@pytest.mark.oracle
@pytest.mark.parametrize("is_scaled", [False, True])
def test_names_excluded_from_weight_decay_go_along(keras, is_scaled):
    """No configuration of Keras says them, so they are read from the live object."""
    live = keras.optimizers.SGD(0.5, weight_decay=0.1)
    live.exclude_from_weight_decay(var_names=["bias", "norm"])
    if is_scaled:
        live = keras.optimizers.LossScaleOptimizer(live)

    rule = rule_of(as_optimizer(live))

    assert rule.excluded_from_weight_decay(["kernel", "bias", "layer_norm"]) == (
        "bias", "layer_norm"
    )  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("is_scaled", [False, True])
def test_what_a_live_keras_optimizer_cannot_say_is_refused(keras, is_scaled):
    """Variables without names, and callables that Keras would write as source code."""
    excluded = keras.optimizers.SGD(0.5, weight_decay=0.1)
    excluded.exclude_from_weight_decay(var_list=[keras.Variable([1.0])])
    called = keras.optimizers.SGD(lambda: 0.5)
    wrap = keras.optimizers.LossScaleOptimizer if is_scaled else lambda optimizer: optimizer

    with pytest.raises(InvalidArgument, match="name them with `var_names`"):
        as_optimizer(wrap(excluded))
    with pytest.raises(InvalidArgument, match="Give the callable to a Stepwell optimizer"):
        as_optimizer(wrap(called))


@pytest.mark.oracle
def test_a_callable_beta_of_a_live_keras_optimizer_is_called_here(keras):
    """Keras hands it over as it is."""
    live = keras.optimizers.Adam(beta_1=lambda: 0.5)

    optimizer = as_optimizer(live)

    assert values_of(callables_of(optimizer)) == {"beta_1": 0.5}


@pytest.mark.oracle
def test_a_keras_optimizer_that_we_do_not_have_is_refused(keras):
    """The sentence lists those that there are."""
    with pytest.raises(InvalidArgument, match=r"Unknown optimizer 'Lion'\. Known: "):
        as_optimizer(keras.optimizers.Lion())


def test_who_asks_for_adamw_is_told_what_it_is_here():
    """Keras's and torch's differ in their defaults and in epsilon; both have a decoupled decay."""
    with pytest.raises(InvalidArgument, match=r"Unknown optimizer 'adamw'\. Known: ") as refused:
        as_optimizer("adamw")

    assert refused.value.message.endswith(
        "Adam(weight_decay=0.004) is Keras's AdamW: its decay is decoupled. "
        "TorchAdam(weight_decay=0.01, decoupled_weight_decay=True) is torch's"
    )


@pytest.mark.oracle
def test_keras_s_adamw_is_the_adam_that_is_named_for_it(keras):
    """A configuration of the one, under the name of the other, is the same."""
    of_adamw = keras.optimizers.AdamW(name="adam").get_config()
    of_adam = keras.optimizers.Adam(weight_decay=0.004, name="adam").get_config()

    assert of_adamw == of_adam
    assert keras.optimizers.AdamW.update_step is keras.optimizers.Adam.update_step


def test_callables_give_way_to_their_places():
    """The server sees which values come with each push, never a function."""
    rate, beta = (lambda: 0.5), (lambda: 0.25)
    optimizer = stepwell.Adam(rate, beta, weight_decay=0.1).exclude_from_weight_decay(["bias"])

    sent = without_callables(optimizer)

    assert callables_of(optimizer) == {"learning_rate": rate, "beta_1": beta}
    assert (sent.learning_rate, sent.beta_1, sent.beta_2) == (PerPush(), PerPush(), 0.999)
    assert sent.excluded_from_weight_decay(["bias", "w"]) == ("bias",)


def test_callables_inside_a_loss_scale_optimizer_are_found():
    """The options of the optimizer around it stay."""
    optimizer = stepwell.LossScaleOptimizer(stepwell.SGD(lambda: 0.5), 8.0, 3, "scaled")

    sent = without_callables(optimizer)

    assert sent == stepwell.LossScaleOptimizer(stepwell.SGD(PerPush()), 8.0, 3, "scaled")
    assert values_of(callables_of(optimizer)) == {"learning_rate": 0.5}


@pytest.mark.parametrize(
    "rate", [0.5, stepwell.schedules.InverseTimeDecay(0.5, 10, 0.5), PerPush()]
)
def test_schedules_and_places_are_no_callables(rate):
    """A schedule is computed at the server, and a place has no value."""
    optimizer = stepwell.SGD(rate)

    assert callables_of(optimizer) == {}
    assert without_callables(optimizer) is optimizer
