"""Methods by name: built for training, or loaded from what a trained one left.

What is known of one without building it is its MethodEntry, which the configuration checks itself by
(sctune/config/methods.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sctune.config import MethodEntry, MethodSection, TrialConfig, method_entries, method_entry, register
from sctune.methods.base import Fitted, Method
from sctune.methods.ensemble import ensemble_of, is_ensemble

__all__ = [
    "MethodEntry",
    "MethodSection",
    "fresh_method",
    "method_class",
    "method_entries",
    "method_entry",
    "register",
    "trained_member",
    "trained_method",
]


def method_class(config: TrialConfig) -> type[Method]:
    """The implementation of a configuration's method; raises ConfigError where it cannot be imported."""
    found: type[Method] = config.entry.load(config)
    return found


def fresh_method(config: TrialConfig, device: torch.device, weights: Path | None = None) -> Method:
    """One that has learned nothing; arguments and errors of `Method.fresh`."""
    return method_class(config).fresh(config, device, weights)


def trained_method(config: TrialConfig, device: torch.device, tensors: Mapping[str, Tensor]) -> Fitted:
    """One that scores; tensors: its `model_state`, or that of an ensemble. CheckpointError where these do not fit."""
    if is_ensemble(tensors):
        return ensemble_of(config, device, tensors, trained_member)
    return trained_member(config, device, tensors)


def trained_member(config: TrialConfig, device: torch.device, tensors: Mapping[str, Tensor]) -> Method:
    """A single method that scores; tensors: its `model_state`. Raises CheckpointError where these do not fit."""
    return method_class(config).trained(config, device, tensors)
