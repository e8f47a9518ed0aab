"""`sctune doctor`: what this machine can do, what is missing, and how to get it."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from typing import Any

from sctune.errors import DataError, SctuneError, WeightsError
from sctune.paths import home, takes_files

PROFILES_TAKE = ("efficientnet_lite0", "resnet18")
"""The backbones of the profiles."""


def examine() -> list[dict[str, Any]]:
    """Findings in order: {"what", "ok", "detail"}; nothing is changed."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    folder = next(path for path in [home(), *home().parents] if path.exists())
    free = shutil.disk_usage(folder).free / 2**30
    return [
        _row("Python", sys.version_info >= (3, 11), sys.version.split()[0]),
        _row("torch", True, f"{torch.__version__}, {os.cpu_count()} cores"),
        _row("GPU", bool(gpus), ", ".join(gpus) or "none; searches take the cpu profile"),
        _row("disk", free > 5, f"{free:.1f} GiB free at {home()}"),
        _row("write access", takes_files(home()), str(home())),
        _data(),
        *map(_weights, PROFILES_TAKE),
        _other_weights(),
        _tracking(),
        _row("S3", find_spec("pyarrow") is not None, "storage paths s3://BUCKET/PATH are possible"),
    ]


def _row(what: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"what": what, "ok": ok, "detail": detail}


def _data() -> dict[str, Any]:
    from sctune.data.catalog import open_dataset

    try:
        data = open_dataset("elpv")
    except DataError as problem:
        return _row("demo data", False, str(problem))
    return _row("demo data", True, f"{len(data.files)} images of {data.name}, {data.licence}")


def _weights(backbone: str) -> dict[str, Any]:
    from sctune.backbones.trunk import build_backbone
    from sctune.backbones.weights import local_weights
    from sctune.config import ModelConfig

    try:
        path = local_weights(backbone)
        if path is None:
            return _row(f"weights of {backbone}", False, "not here yet; downloaded on first use, or model.weights=FILE")
        build_backbone(ModelConfig(backbone=backbone), path)
    except WeightsError as problem:
        return _row(f"weights of {backbone}", False, str(problem))
    return _row(f"weights of {backbone}", True, str(path))


def _other_weights() -> dict[str, Any]:
    from sctune.backbones.registry import backbone_names
    from sctune.backbones.weights import local_weights

    here: list[str] = []
    away: list[str] = []
    for name in sorted(set(backbone_names()) - set(PROFILES_TAKE)):
        try:
            (away if local_weights(name) is None else here).append(name)
        except WeightsError:
            away.append(name)
    timm = "timm/NAME too" if find_spec("timm") else "timm/NAME after pip install timm"
    return _row(
        "weights of other backbones", True, f"here: {', '.join(here) or 'none'}; not yet: {', '.join(away)}; {timm}"
    )


def _tracking() -> dict[str, Any]:
    from sctune.tracking.choice import choose_store
    from sctune.tracking.server import check_tracking, safe_uri

    try:
        uri, origin = choose_store(None, home())
        check_tracking(uri, make=False)
    except SctuneError as problem:
        return _row("tracking", False, str(problem))
    return _row("tracking", True, f"{safe_uri(uri)} ({origin})")
