"""The file of a backbone's weights, and what is in it; where ImageNet weights come from, its entry says.

Never silently random: random weights are taken only where `model.weights=random` says so.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sctune.backbones.registry import backbone_entry
from sctune.backbones.sources import Source
from sctune.errors import WeightsError

RANDOM = "random"
IMAGENET = "imagenet"
SAVE = "torch.save(model.state_dict(), 'weights.pth')"


def resolve_weights(backbone: str, weights: str) -> Path | None:
    """The file that holds the weights, downloaded first where that is needed; None for random ones.

    weights: `imagenet`, `random` or a file. Raises WeightsError with the way out.
    """
    if weights == RANDOM:
        return None
    if weights != IMAGENET:
        path = Path(weights).expanduser().resolve()
        if not path.is_file():
            raise WeightsError(f"model.weights={weights!r} is no file; give `imagenet`, `random` or a state-dict file")
        return path
    return _source(backbone).fetch(backbone)


def local_weights(backbone: str) -> Path | None:
    """ImageNet weights that are on this machine already; None where they would have to be downloaded.

    Raises WeightsError with the way out where they would come from a package that is missing.
    """
    return _source(backbone).local(backbone)


def read_state(path: Path) -> dict[str, Tensor]:
    """Names to tensors of a safetensors file (by its suffix) or of torch.save; pickled code is never run.

    Raises WeightsError, one line, for anything else.
    """
    try:
        with warnings.catch_warnings():
            # torch tells about the pickle protocol; what is wrong is said below
            warnings.simplefilter("ignore", UserWarning)
            held: Any = (
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
    except OSError as problem:
        raise WeightsError(f"cannot read weights from {path}: {problem.strerror or problem}") from None
    except MemoryError:
        raise
    except Exception as problem:
        # readers raise nearly anything on files of other kinds: KeyError, EOFError, RuntimeError, SafetensorError ...
        found = re.search(r"GLOBAL (\S+)", str(problem)) if isinstance(problem, UnpicklingError) else None
        if found is not None:
            raise WeightsError(
                f"{path} holds more than tensors ({found[1]}), and pickled objects are never loaded; where you trust "
                f"the file, load it with the public code and save the tensors alone: {SAVE}"
            ) from None
        raise WeightsError(f"cannot read weights from {path}: neither a safetensors file nor one of {SAVE}") from None
    if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]
    if not (isinstance(held, dict) and held and all(isinstance(value, Tensor) for value in held.values())):
        raise WeightsError(f"{path} does not hold a state dict (names to tensors); save one with {SAVE}")
    return {str(name): value for name, value in held.items()}


def _source(backbone: str) -> Source:
    source = backbone_entry(backbone).weights
    if source is None:
        raise WeightsError(
            f"no ImageNet weights are known for backbone {backbone!r}; give a file with --set model.weights=FILE, or "
            "use --set model.weights=random"
        )
    return source
