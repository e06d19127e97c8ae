"""torch's optimizers, computed by a server: real torch, a real server on loopback."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import stepwell
from stepwell import errors
from stepwell_server.tokens import TokenStore

from tests.requirements import require_package
from tests.servers import served

torch = require_package("torch")
from stepwell.integrations.torch import RemoteOptimizer  # noqa: E402

pytestmark = pytest.mark.full

STEPS = 12
_numbers = itertools.count()


@pytest.fixture
def name() -> str:
    """Return a name of a model that no other test has."""
    return f"torch-{next(_numbers)}"


@pytest.fixture
def remote(server, name):
    """Return a function that makes a `RemoteOptimizer` on the server; closes them afterwards."""
    made = []

    def make(parameters: Any, **options: Any) -> RemoteOptimizer:
        chosen = {"model": name, "url": server.url, "worker": f"w{len(made)}", **options}
        made.append(RemoteOptimizer(parameters, **chosen))
        return made[-1]

    yield make
    for optimizer in made:
        optimizer.close()


def new_module(dtype: Any = None) -> Any:
    """Return a small network, the same each time."""
    torch.manual_seed(0)
    layers = (torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    return torch.nn.Sequential(*layers).to(dtype or torch.float32)


def loss_of(module: Any, step: int) -> Any:
    """Return the loss of one batch; a step has its own."""
    dtype = next(module.parameters()).dtype
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 5, generator=generator).to(dtype)
    y = torch.randn(16, 3, generator=generator).to(dtype)
    return torch.nn.functional.mse_loss(module(x), y)


def train(module: Any, optimizer: Any, scheduler: Any = None, steps: int = STEPS) -> np.ndarray:
    """Train, and return all parameters end to end."""
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(module, step).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return values_of(module)


def values_of(module: Any) -> np.ndarray:
    """Return all parameters end to end."""
    return np.concatenate([p.detach().numpy().ravel().copy() for p in module.parameters()])


def check_same(ours: np.ndarray, theirs: np.ndarray, before: np.ndarray) -> None:
    """Check that a training changed parameters as torch did, to 1e-6 of the largest value."""
    tolerance = 1e-12 if ours.dtype == np.float64 else 1e-6
    assert np.abs(theirs - before).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.05, "momentum": 0.9}),
    "dampening": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "sgd with L2": ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "adagrad": ("Adagrad", {"lr": 0.05}),
    "adagrad with all": (
        "Adagrad",
        {"lr": 0.05, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2},
    ),
    "adam": ("Adam", {"lr": 0.01}),
    "adam with L2": ("Adam", {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-3}),
    "amsgrad": ("Adam", {"lr": 0.01, "amsgrad": True, "betas": (0.8, 0.9)}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", OPTIMIZERS)
def test_steps_of_the_server_are_those_of_torch(remote, case: str, dtype: str) -> None:
    """Each optimizer with each of its options, in both dtypes, given as an instance."""
    # Arrange
    cls, options = OPTIMIZERS[case]
    local, other = new_module(getattr(torch, dtype)), new_module(getattr(torch, dtype))
    before = values_of(local)
    instance = getattr(torch.optim, cls)(other.parameters(), **options)

    # Act
    theirs = train(local, getattr(torch.optim, cls)(local.parameters(), **options))
    ours = train(other, remote(other.named_parameters(), optimizer=instance))

    # Assert
    check_same(ours, theirs, before)


def groups_of(module: Any, *, named: bool) -> list[dict[str, Any]]:
    """Return one group a layer, the second with its own rate and decay."""
    first, second = (
        list(layer.named_parameters(prefix) if named else layer.parameters())
        for prefix, layer in (("0", module[0]), ("2", module[2]))
    )
    return [{"params": first}, {"params": second, "lr": 0.002, "weight_decay": 0.3}]


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda optimizer: None,
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5),
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
        optimizer, [lambda step: 1 / (1 + step), lambda step: 1.0 + step]
    ),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[0.02, 0.01], total_steps=STEPS + 1
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("cls", ["Adam", "AdamW"])
def test_groups_and_schedulers_are_those_of_torch(remote, cls: str, schedule: str) -> None:
    """Own rates and decays; schedulers change rates and betas, which go along with each push."""
    # Arrange
    local, other = new_module(), new_module()
    before = values_of(local)
    options = {"lr": 0.01, "weight_decay": 0.1}
    optimizer = getattr(torch.optim, cls)(groups_of(local, named=False), **options)
    ours = remote(groups_of(other, named=True), optimizer=getattr(torch.optim, cls), **options)

    # Act
    expected = train(local, optimizer, SCHEDULERS[schedule](optimizer))
    found = train(other, ours, SCHEDULERS[schedule](ours))

    # Assert
    check_same(found, expected, before)


def test_a_group_may_have_decay_where_the_others_have_none(remote) -> None:
    """As of biases and norms, whose decay people switch off; here the other way round too."""
    # Arrange
    local, other = new_module(), new_module()
    before = values_of(local)
    optimizer = torch.optim.SGD(groups_of(local, named=False), lr=0.1)
    ours = remote(
        groups_of(other, named=True), optimizer=functools.partial(torch.optim.SGD, lr=0.1)
    )

    # Act
    expected, found = train(local, optimizer), train(other, ours)

    # Assert
    check_same(found, expected, before)


def test_an_optimizer_of_stepwell_is_keras_s(server, remote, name: str) -> None:
    """The same gradients pushed by hand to another model give the same parameters."""
    # Arrange
    module = new_module()
    by_hand = new_module()
    optimizer = remote(module.named_parameters(), optimizer=stepwell.Adam(0.01))
    with stepwell.Client(server.url) as client:
        named = dict(by_hand.named_parameters())
        model = client.create_model(name + "-by-hand", named, optimizer=stepwell.Adam(0.01))
        with model.worker("w") as worker, torch.no_grad():
            for step in range(3):
                with torch.enable_grad():
                    grads = torch.autograd.grad(loss_of(by_hand, step), [*named.values()])
                pulled = worker.push_pull(dict(zip(named, grads, strict=True)))
                for key, parameter in named.items():
                    parameter.copy_(torch.tensor(pulled[key]))

    # Act
    train(module, optimizer, steps=3)

    # Assert
    np.testing.assert_array_equal(values_of(module), values_of(by_hand))


def test_a_second_worker_begins_with_the_parameters_of_the_server(remote) -> None:
    """Whoever comes later, with other initial values, trains what is there."""
    # Arrange
    first, second = new_module(), new_module()
    train(first, remote(first.named_parameters(), optimizer=torch.optim.SGD, lr=0.1), steps=2)

    # Act
    remote(second.named_parameters(), optimizer=torch.optim.SGD, lr=0.1)

    # Assert
    np.testing.assert_array_equal(values_of(first), values_of(second))


def test_the_gradient_is_read_where_torch_keeps_it(remote, monkeypatch) -> None:
    """No copy on the way into the push: its arrays share the memory of `.grad`."""
    # Arrange
    module = new_module()
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.SGD, lr=0.1)
    seen: dict[str, int] = {}
    whole = stepwell.calls.gradients_of  # type: ignore[attr-defined]

    def noted(gradients: Any, dtype: Any = None) -> Any:
        arrays, dtypes = whole(gradients, dtype)
        seen.update({key: array.ctypes.data for key, array in arrays.items()})
        return arrays, dtypes

    monkeypatch.setattr("stepwell.calls.gradients_of", noted)

    # Act
    train(module, optimizer, steps=1)

    # Assert
    assert seen == {key: p.grad.data_ptr() for key, p in module.named_parameters()}


def test_a_step_writes_into_the_module_s_own_memory(remote) -> None:
    """Whoever holds a parameter sees the step: no tensor is replaced."""
    # Arrange
    module = new_module()
    held = [(p, p.data_ptr()) for p in module.parameters()]
    before = values_of(module)

    # Act
    train(module, remote(module.named_parameters(), optimizer=torch.optim.SGD, lr=0.1), steps=1)

    # Assert
    assert all(p.data_ptr() == address for p, address in held)
    assert (values_of(module) != before).any()


def test_a_graph_from_before_the_step_is_refused_by_autograd(remote) -> None:
    """As with torch's own: its gradient would be one of new parameters and old activations."""
    # Arrange
    module = new_module()
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.SGD, lr=0.1)
    loss = loss_of(module, 0)
    loss.backward(retain_graph=True)

    # Act
    optimizer.step()

    # Assert
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_closure_is_called_and_its_loss_returned(remote) -> None:
    """As `torch.optim.Optimizer.step` has it, with gradients switched on."""
    # Arrange
    module = new_module()
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.SGD, lr=0.1)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of(module, 0)
        loss.backward()
        return loss

    # Act
    with torch.no_grad():
        loss = optimizer.step(closure)

    # Assert
    assert loss.item() > 0
    assert optimizer.last_result.outcome == "applied"


def test_overlap_trains_one_step_behind_and_says_so(remote) -> None:
    """The gradients lack the last step: from the second step on, their staleness is 1."""
    # Arrange
    module = new_module()
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.SGD, lr=0.1, overlap=True)

    # Act
    staleness = []
    for step in range(4):
        train(module, optimizer, steps=1)
        staleness.append(optimizer.last_result.staleness)
        assert step == len(staleness) - 1
    optimizer.pull()

    # Assert
    assert staleness == [0, 1, 1, 1]
    assert optimizer.state_dict()["stepwell"]["version"] == 4


def test_overlap_computes_what_delayed_gradients_give(remote) -> None:
    """Each gradient is taken at the parameters before the last step, exactly."""
    # Arrange
    module, local = new_module(), new_module()
    before = values_of(local)
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.SGD, lr=0.1, overlap=True)
    newest = [p.detach().clone() for p in local.parameters()]

    # Act
    train(module, optimizer, steps=5)
    optimizer.pull()
    for step in range(5):
        grads = torch.autograd.grad(loss_of(local, step), [*local.parameters()])
        with torch.no_grad():
            behind = [p.clone() for p in newest] if step else newest
            for p, old in zip(local.parameters(), behind, strict=True):
                p.copy_(old)
            newest = [p - 0.1 * g for p, g in zip(newest, grads, strict=True)]

    # Assert
    expected = torch.cat([p.ravel() for p in newest]).numpy()
    check_same(values_of(module), expected, before)


def test_an_interrupted_wait_for_a_pull_is_taken_up_again(remote) -> None:
    """Ctrl-C in a notebook: the pull goes on behind, so no push may go beside it."""
    # Arrange
    module = new_module()
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.SGD, lr=0.1, overlap=True)
    pending = optimizer._pending = _Interrupted()

    # Act
    with pytest.raises(KeyboardInterrupt):
        train(module, optimizer, steps=1)

    # Assert
    assert optimizer._pending is pending
    assert optimizer.last_result is None
    optimizer._pending = None


class _Interrupted(concurrent.futures.Future):  # type: ignore[type-arg]
    """A pull that goes on while somebody presses Ctrl-C."""

    def result(self, timeout: float | None = None) -> Any:
        raise KeyboardInterrupt


def test_overlap_goes_on_in_a_new_history(server, remote, name: str) -> None:
    """What was pulled of the old one is not taken, nor its version said."""
    # Arrange
    module = new_module()
    options = {"optimizer": torch.optim.SGD, "lr": 0.1, "overlap": True, "on_stale": "repull"}
    optimizer = remote(module.named_parameters(), **options)
    restore_in_the_midst(server, name, lambda: train(module, optimizer, steps=3))

    # Act
    outcomes = []
    for _ in range(3):
        train(module, optimizer, steps=1)
        outcomes.append((optimizer.last_result.outcome, optimizer.last_result.staleness))

    # Assert
    assert outcomes == [("dropped_stale", 0), ("applied", 0), ("applied", 1)]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_closed_optimizer_steps_no_more(server, name: str, overlap: bool) -> None:
    """Nor with a client that is open: nothing is pushed, and no session is opened anew."""
    # Arrange
    module = new_module()
    with stepwell.Client(server.url) as client:
        options = {"optimizer": torch.optim.SGD, "lr": 0.1, "overlap": overlap, "client": client}
        optimizer = RemoteOptimizer(module.named_parameters(), name, **options)
        train(module, optimizer, steps=1)

        # Act
        optimizer.close()
        for call in (lambda: train(module, optimizer, steps=1), optimizer.pull):
            with pytest.raises(errors.ClientClosed, match="make another one"):
                call()

        # Assert
        assert client.model(name).describe()["version"] == 1


def restore_in_the_midst(server: Any, name: str, between: Callable[[], Any]) -> None:
    """Take a checkpoint, do something, and go back to it."""
    with stepwell.Client(server.url) as client:
        model = client.model(name)
        checkpoint = model.checkpoint()
        between()
        model.restore(checkpoint.id)


def test_after_a_restore_the_script_pulls_and_goes_on(server, remote, name: str) -> None:
    """The error says so; before, this optimizer could never step again."""
    # Arrange
    module = new_module()
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.SGD, lr=0.1)
    restore_in_the_midst(server, name, lambda: train(module, optimizer, steps=1))

    # Act
    with pytest.raises(errors.StaleIncarnation, match=r"Call optimizer\.pull\(\)"):
        train(module, optimizer, steps=1)
    optimizer.pull()
    train(module, optimizer, steps=1)

    # Assert
    assert optimizer.last_result.outcome == "applied"
    assert optimizer.last_result.staleness == 0


def test_a_pull_goes_on_from_parameters_that_were_written(server, remote, name: str) -> None:
    """As from a file: written on the server, pulled, and the next step begins there."""
    # Arrange
    module = new_module()
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.SGD, lr=0.0)
    train(module, optimizer, steps=1)
    with stepwell.Client(server.url) as client:
        client.model(name).overwrite({k: torch.ones_like(p) for k, p in module.named_parameters()})

    # Act
    optimizer.pull()
    train(module, optimizer, steps=1)

    # Assert
    assert optimizer.last_result.outcome == "applied"
    assert (values_of(module) == 1).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_it_is_neither_copied_nor_pickled(remote, copied: Callable[[Any], Any]) -> None:
    """A copy would have no session; the sentence says what can be kept."""
    # Arrange
    optimizer = remote(new_module().named_parameters(), optimizer=torch.optim.SGD, lr=0.1)

    # Act / Assert
    with pytest.raises(errors.InvalidArgument, match=r"keep `state_dict\(\)`"):
        copied(optimizer)


def test_grad_scaler_s_scale_is_divided_out_by_the_server(remote) -> None:
    """The gradients travel as they are, scaled; the step is that without a scale."""
    # Arrange
    local, other = new_module(), new_module()
    before = values_of(local)
    optimizer = remote(other.named_parameters(), optimizer=torch.optim.Adam, lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    # Act
    expected = train(local, torch.optim.Adam(local.parameters(), lr=0.01), steps=3)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(other, step)).backward()
        scaler.step(optimizer)
        scaler.update()

    # Assert
    check_same(values_of(other), expected, before)


def test_grad_scaler_skips_a_step_that_overflowed(remote) -> None:
    """Infinite gradients are not pushed, and the scale is halved, as torch has it."""
    # Arrange
    module = new_module()
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.SGD, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    before = values_of(module)

    # Act
    scaler.scale(loss_of(module, 0)).backward()
    module[0].weight.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()

    # Assert
    assert optimizer.last_result is None
    assert scaler.get_scale() == 128.0
    np.testing.assert_array_equal(values_of(module), before)


def test_the_server_s_loss_scale_takes_the_place_of_grad_scaler(remote) -> None:
    """`scale` multiplies by what the server says; it halves it when gradients overflow."""
    # Arrange
    module = new_module()
    rule = stepwell.LossScaleOptimizer(stepwell.TorchSGD(0.1), initial_scale=64.0)
    optimizer = remote(module.named_parameters(), optimizer=rule)

    # Act
    optimizer.scale(loss_of(module, 0)).backward()
    optimizer.step()
    first = optimizer.last_result.outcome
    module[0].weight.grad[0, 0] = float("inf")
    optimizer.step()

    # Assert
    assert (first, optimizer.last_result.outcome) == ("applied", "skipped_nonfinite")
    assert optimizer.loss_scale == 32.0


def test_all_losses_of_a_step_have_one_scale(remote, monkeypatch) -> None:
    """Gradients are accumulated: a pull in between may say another scale, for the next step."""
    # Arrange
    rule = stepwell.LossScaleOptimizer(stepwell.TorchSGD(0.1), initial_scale=64.0)
    optimizer = remote(new_module().named_parameters(), optimizer=rule)
    loss = torch.tensor(1.0)

    # Act
    first = optimizer.scale(loss)
    monkeypatch.setattr(optimizer._worker._session, "loss_scale", 32.0)
    second = optimizer.scale(loss)

    # Assert
    assert (float(first), float(second)) == (64.0, 64.0)


def test_state_dict_brings_rates_back_and_says_where_the_rest_is(remote, name: str) -> None:
    """A script that saves and loads goes on with the rate of its scheduler."""
    # Arrange
    module = new_module()
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.Adam, lr=0.01)
    optimizer.param_groups[0]["lr"] = 0.003
    state = optimizer.state_dict()
    again = remote(new_module().named_parameters(), optimizer=torch.optim.Adam, lr=0.01)

    # Act
    again.load_state_dict(state)

    # Assert
    assert state["stepwell"]["model"] == name
    assert again.param_groups[0]["lr"] == 0.003


def test_buffers_are_kept_and_given_to_who_comes_later(remote) -> None:
    """Running statistics and counts of a batch normalization, which no gradient changes."""
    # Arrange
    first, second = (torch.nn.Sequential(*new_module(), torch.nn.BatchNorm1d(3)) for _ in "ab")
    options = {"optimizer": torch.optim.SGD, "lr": 0.1}
    optimizer = remote(first.named_parameters(), buffers=first.named_buffers(), **options)

    # Act
    train(first, optimizer, steps=3)
    remote(second.named_parameters(), buffers=second.named_buffers(), **options)

    # Assert
    theirs, ours = dict(first.named_buffers()), dict(second.named_buffers())
    assert int(ours["3.num_batches_tracked"]) == 3
    assert float(ours["3.running_mean"].abs().max()) > 0
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    "options",
    [{"overlap": True}, {"consistency": stepwell.Buffered(4)}],
    ids=["overlap", "buffered"],
)
def test_statistics_see_each_batch(remote, options: dict[str, Any]) -> None:
    """No step puts back buffers that lack what this module's last batches were."""
    # Arrange
    module = torch.nn.Sequential(*new_module(), torch.nn.BatchNorm1d(3))
    optimizer = remote(
        module.named_parameters(),
        buffers=module.named_buffers(),
        optimizer=torch.optim.SGD,
        lr=0.1,
        **options,
    )

    # Act
    train(module, optimizer, steps=8)

    # Assert
    assert int(module[3].num_batches_tracked) == 8
    optimizer.pull()
    assert int(module[3].num_batches_tracked) == 8


def test_a_buffer_of_bfloat16_is_kept(remote) -> None:
    """NumPy has no such dtype."""
    # Arrange
    module = new_module()
    module.register_buffer("table", torch.arange(3, dtype=torch.bfloat16))
    optimizer = remote(
        module.named_parameters(),
        buffers=module.named_buffers(),
        optimizer=torch.optim.SGD,
        lr=0.1,
    )

    # Act
    module.table += 1
    train(module, optimizer, steps=1)
    module.table.zero_()
    optimizer.pull()

    # Assert
    assert module.table.tolist() == [1, 2, 3]


# ---------------------------------------------------------------------------------------------
# What cannot be: one sentence, an exception that a script can catch, and nothing changed.


def test_a_parameter_without_a_gradient_is_named(remote) -> None:
    """Nothing is pushed; with missing="skip" it is left as it is."""
    # Arrange
    module = new_module()
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.SGD, lr=0.1)
    loss_of(module, 0).backward()
    module[2].bias.grad = None

    # Act
    with pytest.raises(errors.InvalidInput, match=r"'2.bias' has no gradient.*missing='skip'"):
        optimizer.step()

    # Assert
    assert optimizer.last_result is None


@pytest.mark.parametrize("way", ["skip", "frozen"])
def test_a_parameter_may_be_left_out_on_purpose(remote, way: str) -> None:
    """By missing="skip", or by freezing it after the optimizer was made."""
    # Arrange
    module = new_module()
    missing = "skip" if way == "skip" else "raise"
    optimizer = remote(
        module.named_parameters(), optimizer=torch.optim.SGD, lr=0.1, missing=missing
    )
    bias = module[2].bias.detach().clone()
    module[2].bias.requires_grad_(way == "skip")

    # Act
    loss_of(module, 0).backward()
    module[2].bias.grad = None
    optimizer.step()

    # Assert
    assert optimizer.last_result.outcome == "applied"
    assert torch.equal(module[2].bias, bias)


def test_a_layer_that_was_frozen_and_is_no_more_is_named(remote) -> None:
    """The model on the server has no such tensor, so its gradient would be lost unseen."""
    # Arrange
    module = new_module()
    module[0].requires_grad_(False)
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.SGD, lr=0.1)
    train(module, optimizer, steps=1)
    module[0].requires_grad_(True)
    loss_of(module, 1).backward()

    # Act
    with pytest.raises(errors.InvalidInput, match=r"'0.weight' was frozen") as refusal:
        optimizer.step()

    # Assert
    assert refusal.value.details["tensor"] == "0.weight"


def test_a_layer_that_is_added_later_is_refused(remote) -> None:
    """A model's tensors are decided when it is created."""
    # Arrange
    optimizer = remote(new_module().named_parameters(), optimizer=torch.optim.SGD, lr=0.1)

    # Act / Assert
    with pytest.raises(errors.InvalidArgument, match="a group cannot be added"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})


def test_another_shape_is_named_with_both_values(remote) -> None:
    """The module of another script, under the same model's name."""
    # Arrange
    remote(new_module().named_parameters(), optimizer=torch.optim.SGD, lr=0.1)
    other = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))

    # Act / Assert
    with pytest.raises(errors.ShapeMismatch, match=r"'0.weight' has shape \(7, 5\).*\(8, 5\)"):
        remote(other.named_parameters(), optimizer=torch.optim.SGD, lr=0.1)


def test_other_names_are_listed(remote) -> None:
    """Which are missing, and which the server does not know."""
    # Arrange
    remote(new_module().named_parameters(), optimizer=torch.optim.SGD, lr=0.1)

    # Act / Assert
    with pytest.raises(errors.LayoutMismatch, match=r"Missing: 0.weight, 0.bias.*unknown: weight"):
        remote(torch.nn.Linear(5, 7).named_parameters(), optimizer=torch.optim.SGD, lr=0.1)


def test_another_optimizer_of_the_same_model_is_refused(remote) -> None:
    """Two workers with different rules would each think that theirs is made."""
    # Arrange
    remote(new_module().named_parameters(), optimizer=torch.optim.SGD, lr=0.1, momentum=0.9)

    # Act / Assert
    with pytest.raises(errors.ModelDiffers, match=r"is TorchSGD, received TorchAdam"):
        remote(new_module().named_parameters(), optimizer=torch.optim.Adam)
    with pytest.raises(errors.ModelDiffers, match=r"nesterov is False, received True\)\. Make"):
        remote(
            new_module().named_parameters(),
            optimizer=torch.optim.SGD,
            lr=0.1,
            momentum=0.9,
            nesterov=True,
        )


def test_a_dtype_that_the_server_does_not_hold_is_named(remote) -> None:
    """Half-width parameters have to be kept in float32; gradients may be anything."""
    # Act / Assert
    with pytest.raises(errors.DtypeMismatch, match=r"'0.weight' of torch.bfloat16.*autocast"):
        remote(new_module(torch.bfloat16).named_parameters(), optimizer=torch.optim.SGD)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: torch.optim.RMSprop(p), "and no other of torch. Received: RMSprop"),
        (lambda p: torch.optim.Adam(p, maximize=True), "negate the loss"),
    ],
)
def test_what_the_server_does_not_compute_is_refused(remote, make: Any, sentence: str) -> None:
    """No optimizer is taken for another that looks like it."""
    # Arrange
    module = new_module()

    # Act / Assert
    with pytest.raises(errors.InvalidArgument, match=sentence):
        remote(module.named_parameters(), optimizer=make(module.parameters()))


def test_an_optimizer_that_made_steps_is_refused(remote) -> None:
    """Its momentum would be lost."""
    # Arrange
    module = new_module()
    optimizer = torch.optim.Adam(module.parameters())
    train(module, optimizer, steps=1)

    # Act / Assert
    with pytest.raises(errors.InvalidArgument, match="before its first step"):
        remote(module.named_parameters(), optimizer=optimizer)


def test_parameters_without_names_are_refused(remote) -> None:
    """The line that people forget to change."""
    # Act / Assert
    with pytest.raises(errors.InvalidArgument, match=r"give module.named_parameters\(\)"):
        remote(new_module().parameters(), optimizer=torch.optim.SGD)


def test_a_number_that_cannot_change_later_is_named(remote) -> None:
    """Nothing is pushed with another epsilon than the server's."""
    # Arrange
    module = new_module()
    optimizer = remote(module.named_parameters(), optimizer=torch.optim.Adam)
    loss_of(module, 0).backward()
    optimizer.param_groups[0]["eps"] = 1e-3

    # Act / Assert
    with pytest.raises(errors.InvalidArgument, match=r"`epsilon` was 1e-08.*Received: 0\.001"):
        optimizer.step()


def test_a_server_that_is_not_there_is_one_sentence(name: str) -> None:
    """After the time that the script gives it."""
    # Act / Assert
    with pytest.raises(errors.ConnectionFailed):
        RemoteOptimizer(
            new_module().named_parameters(),
            model=name,
            optimizer=torch.optim.SGD,
            url="http://127.0.0.1:9",
            timeout=stepwell.Timeout(connect_s=0.2, retry_s=0.2),
        )


def test_a_token_that_may_only_push_trains_but_does_not_create(tmp_path) -> None:
    """The role is in the sentence, and what to do; with a model that is there it is enough."""
    # Arrange
    module, store = new_module(), TokenStore(tmp_path)
    tokens = {role: store.create(role) for role in ("push", "admin")}

    # Act / Assert
    with served(tmp_path) as server:
        options = {"model": "m", "url": server.url, "optimizer": torch.optim.SGD, "lr": 0.1}
        with pytest.raises(errors.Forbidden, match=r"no model 'm' yet.*role admin"):
            RemoteOptimizer(module.named_parameters(), token=tokens["push"], **options)
        RemoteOptimizer(module.named_parameters(), token=tokens["admin"], **options).close()
        with RemoteOptimizer(
            module.named_parameters(), token=tokens["push"], **options
        ) as optimizer:
            train(module, optimizer, steps=1)
            assert optimizer.last_result.outcome == "applied"
