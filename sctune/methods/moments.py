"""Adam's moments as named tensors of a state, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sctune.errors import CheckpointError

OPTIM = "optim/"
"""Begins their names; the index of the weight and Adam's own name follow."""
STEPPED = "stepped"
"""Name, among the values of a state, of the number of weights that had a step."""


def moment_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of all weights that had a step yet."""
    return {
        f"{OPTIM}{index}/{name}": torch.as_tensor(value)
        for index, moments in optimiser.state_dict()["state"].items()
        for name, value in moments.items()
    }


def load_moments(
    optimiser: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    others: tuple[str, ...],
    whole: bool = False,
    count: object = None,
) -> None:
    """Take over what `moment_tensors` gave of Adam on the same weights, in one group; the tensors stay as they are.

    others: beginnings of names in `tensors` that are none of the optimiser's. whole: each step is one of all weights,
    so that all of them have moments, or none has. count: how many weights have moments, where a state says so. Raises
    CheckpointError, before anything is changed, where the tensors are of other weights, or a part is missing.
    """
    (group,) = optimiser.param_groups
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        match = re.fullmatch(rf"{OPTIM}([0-9]{{1,6}})/(step|exp_avg|exp_avg_sq)", name)
        if match is None and name.startswith(others):
            continue
        weight = group["params"][int(match[1])] if match and int(match[1]) < len(group["params"]) else None
        if match is None or weight is None or value.shape != (() if match[2] == "step" else weight.shape):
            raise CheckpointError(f"the checkpoint does not fit the optimiser: {name!r}")
        # Adam changes its own in place
        moments.setdefault(int(match[1]), {})[match[2]] = value.clone()
    lacks = (whole and 0 < len(moments) < len(group["params"])) or (count is not None and count != len(moments))
    if lacks or any(len(state) != 3 for state in moments.values()):
        raise CheckpointError("the checkpoint does not fit the optimiser: a part of its state is missing")
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
