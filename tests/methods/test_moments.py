"""Adam's moments in a state: taken over as they were, without touching what they came from, and refused in part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sctune.errors import CheckpointError
from sctune.methods.moments import load_moments, moment_tensors

OTHERS = ("model/",)


def stepped(net: nn.Linear, tensors: dict[str, Tensor] | None = None, whole: bool = False) -> torch.optim.Adam:
    """Adam on a network after one more step of it; tensors: what it takes over before."""
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    if tensors is not None:
        load_moments(optimiser, tensors, OTHERS, whole=whole)
    optimiser.zero_grad()
    net(torch.ones(1, 3)).square().sum().backward()
    optimiser.step()
    return optimiser


@pytest.fixture
def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_a_step_goes_on_and_leaves_the_callers_tensors_alone(net: nn.Linear) -> None:
    first = stepped(net)
    held = {name: value.clone() for name, value in moment_tensors(first).items()}
    given = {name: value.clone() for name, value in held.items()} | {"model/weight": torch.zeros(1)}
    twin = nn.Linear(3, 2)
    twin.load_state_dict(net.state_dict())
    again = stepped(twin, given)
    assert len(held) == 6 and all(torch.equal(value, given[name]) for name, value in held.items())
    first.zero_grad()
    net(torch.ones(1, 3)).square().sum().backward()
    first.step()
    after = moment_tensors(first)
    assert all(torch.equal(value, after[name]) for name, value in moment_tensors(again).items())
    assert not torch.equal(after["optim/0/exp_avg"], held["optim/0/exp_avg"])
    assert torch.equal(twin.weight, net.weight)


def test_weights_without_moments_are_the_callers_choice(net: nn.Linear) -> None:
    held = moment_tensors(stepped(net))
    of_one = {name: value for name, value in held.items() if name.startswith("optim/0/")}
    with pytest.raises(CheckpointError, match="a part of its state is missing"):
        stepped(net, of_one, whole=True)
    with pytest.raises(CheckpointError, match="a part of its state is missing"):
        load_moments(torch.optim.Adam(net.parameters()), of_one, OTHERS, count=2)
    load_moments(torch.optim.Adam(net.parameters()), of_one, OTHERS, count=1)
    stepped(net, of_one)
    for everything in ({}, held):
        stepped(net, everything, whole=True)


@pytest.mark.parametrize("whole", [False, True])
def test_what_does_not_fit_is_refused_before_anything_changes(whole: bool, net: nn.Linear) -> None:
    optimiser = stepped(net)
    held = {name: value.clone() for name, value in moment_tensors(optimiser).items()}
    for wrong in (
        {name: value for name, value in held.items() if name != "optim/1/exp_avg"},
        held | {"optim/0/exp_avg": torch.zeros(3)},
        held | {"optim/0/more": torch.zeros(())},
        held | {"optim/2/step": torch.zeros(())},
        held | {"odd": torch.zeros(())},
    ):
        with pytest.raises(CheckpointError, match="does not fit the optimiser"):
            load_moments(optimiser, {name: value * 0 for name, value in wrong.items()}, OTHERS, whole=whole)
    assert all(torch.equal(value, held[name]) for name, value in moment_tensors(optimiser).items())
