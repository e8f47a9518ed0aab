"""The updates of CutPaste: cross-entropy of its classes, SGD with momentum, one cosine (paper appendix A)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sctune.config import TrialConfig
from sctune.errors import CheckpointError
from sctune.methods.base import MODEL, TaskImages
from sctune.methods.cutpaste.entry import section_of, trunk_share
from sctune.methods.cutpaste.network import Classifier, load_part
from sctune.methods.cutpaste.pretext import Pretext
from sctune.methods.length import Length

HEAD, OPTIMISER = "head/", "optim/"
"""Begin the names of the head's weights, and of SGD's momentum, in a checkpoint."""


class Training:
    """What a training needs beside the trunk; runs update number 0, 1, ..., which decides all that is drawn.

    length: how many updates it has.
    """

    def __init__(self, config: TrialConfig, net: Classifier, images: TaskImages, device: torch.device) -> None:
        section = section_of(config)
        self.config = config
        self.net = net
        self.pretext = Pretext(config, images, device)
        self.length = Length(config, section.total_updates, -(-len(images.normals) // self.pretext.normal))
        self.forward: nn.Module = torch.compile(net) if config.runtime.compile else net  # type: ignore[assignment]
        rates = (section.sgd_lr * trunk_share(config), section.sgd_lr)
        groups = [
            {"params": [weight for weight in part.parameters() if weight.requires_grad], "lr": rate, "first": rate}
            for part, rate in zip((net.trunk, net.head), rates, strict=True)
        ]
        self.optimiser = torch.optim.SGD(groups, momentum=section.momentum, weight_decay=section.weight_decay)

    def update(self, number: int) -> dict[str, Tensor]:
        """One step; scalar tensors by name. accuracy: share of the batch whose class was told."""
        images, labels = self.pretext.batch(number)
        for group in self.optimiser.param_groups:
            group["lr"] = group["first"] * self.cosine(number)
        logits = self.forward(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        told = (logits.detach().argmax(dim=1) == labels).float().mean()
        return {"loss": loss.detach(), "accuracy": told}

    def cosine(self, number: int) -> float:
        """Share of the first learning rates in update `number`: from 1 to nearly 0 over a full run."""
        return 0.5 * (1 + math.cos(math.pi * number / self.length.whole))

    def state(self) -> dict[str, Tensor]:
        tensors = {f"{HEAD}{name}": value for name, value in self.net.head.state_dict().items()}
        for index, held in self.optimiser.state_dict()["state"].items():
            # SGD without momentum holds none
            if held.get("momentum_buffer") is not None:
                tensors[f"{OPTIMISER}{index}"] = held["momentum_buffer"]
        return tensors

    @property
    def stepped(self) -> int:
        """Weights that have a momentum: those of a backbone that no gradient reaches, as HRNet's last, never have."""
        held = self.optimiser.state_dict()["state"].values()
        return sum(one.get("momentum_buffer") is not None for one in held)

    def load_state(self, tensors: Mapping[str, Tensor], stepped: object) -> None:
        """Take over the part of a checkpoint that is not the model; raises CheckpointError where it does not fit.

        stepped: as the property was, None where a checkpoint of an earlier version does not say it.
        """
        weights = [weight for group in self.optimiser.param_groups for weight in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            match = re.fullmatch(rf"{OPTIMISER}([0-9]{{1,6}})", name)
            if match is not None and int(match[1]) < len(weights) and value.shape == weights[int(match[1])].shape:
                # SGD changes it in place
                moments[int(match[1])] = {"momentum_buffer": value.clone()}
            elif not name.startswith((MODEL, HEAD)):
                raise CheckpointError(f"the checkpoint does not fit the optimiser: {name!r}")
        if stepped is not None and stepped != len(moments):
            raise CheckpointError("the checkpoint does not fit the optimiser: a part of its state is missing")
        head = {name.removeprefix(HEAD): value for name, value in tensors.items() if name.startswith(HEAD)}
        load_part(self.net.head, head, "head")
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})


def means(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Mean of each figure over the steps of an epoch."""
    return {name: float(torch.stack([row[name] for row in rows]).double().mean()) for name in rows[0]}
