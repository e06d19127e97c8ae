"""What people give for parameters, groups and buffers: checked before a server is asked."""

from __future__ import annotations

from typing import Any

import pytest
from stepwell import errors

from tests.requirements import require_package

torch = require_package("torch")
from stepwell.integrations.torch_groups import (  # noqa: E402
    check_buffers,
    check_parameters,
    groups_of,
    taken_apart,
)

pytestmark = pytest.mark.full


def rules_of(optimizer: Any, module: Any) -> Any:
    """Return the groups and rules of an optimizer of torch."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    groups, _, rules = groups_of(optimizer, None, named, {})
    return groups, rules


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_group_that_is_frozen_as_a_whole_is_left_out(frozen: int) -> None:
    """As a body beside its head; the numbers of the other groups stay with their tensors."""
    # Arrange
    module = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    module[frozen].requires_grad_(False)
    groups = [{"params": layer.parameters(), "lr": 0.1 * (1 + i)} for i, layer in enumerate(module)]

    # Act
    found, rules = rules_of(torch.optim.SGD(groups), module)

    # Assert
    trained = [i for i in range(3) if i != frozen]
    assert [group["lr"] for group in found] == [0.1 * (1 + i) for i in trained]
    assert rules.groups[0].tensors == (f"{trained[1]}.weight", f"{trained[1]}.bias")
    assert list(rules.values(found).values()) == [0.1 * (1 + i) for i in trained]


def test_a_shared_parameter_under_two_names_is_refused_with_both() -> None:
    """named_parameters(remove_duplicate=False) gives it so; it would be stepped twice."""
    # Arrange
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)})
    module["b"] = module["a"]

    # Act / Assert
    with pytest.raises(errors.InvalidArgument, match=r"once\. Received one as 'a.weight' and as"):
        taken_apart(module.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize(
    "make", [lambda: torch.nn.LazyLinear(2), lambda: torch.nn.Linear(2, 2, device="meta")]
)
def test_a_parameter_without_numbers_yet_is_named(make: Any) -> None:
    """Lazy modules and the meta device: what to do about each is in the sentence."""
    with pytest.raises(errors.InvalidArgument, match=r"'weight', which has none yet.*one batch"):
        check_parameters(dict(make().named_parameters()))


def test_a_module_that_is_frozen_as_a_whole_is_our_error() -> None:
    """It says what to unfreeze."""
    with pytest.raises(errors.InvalidArgument, match=r"requires_grad_\(True\)"):
        check_parameters({})


@pytest.mark.parametrize(
    "buffer", [torch.ones(2, dtype=torch.complex64), torch.tensor([2**60 + 1])]
)
def test_a_buffer_whose_numbers_would_change_is_refused(buffer: Any) -> None:
    """Complex ones would lose their imaginary part, large whole numbers their last digits."""
    with pytest.raises(errors.DtypeMismatch, match=r"'table' of torch.*name != 'table'"):
        check_buffers({"table": buffer})


def test_an_optimizer_that_has_a_scheduler_is_refused() -> None:
    """The scheduler would go on changing the other optimizer, and no rate of the server."""
    # Arrange
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)

    # Act / Assert
    with pytest.raises(errors.InvalidArgument, match="make the scheduler of the RemoteOptimizer"):
        rules_of(optimizer, module)


def test_a_group_that_begins_to_ascend_is_refused() -> None:
    """`maximize` is read at each step by torch, so it is here."""
    # Arrange
    module = torch.nn.Linear(2, 2)
    groups, rules = rules_of(torch.optim.SGD(module.parameters()), module)

    # Act
    groups[0]["maximize"] = True

    # Assert
    with pytest.raises(errors.InvalidArgument, match="maximize=True"):
        rules.values(groups)
