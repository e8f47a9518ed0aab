"""Device, precision and determinism of a trial."""

from __future__ import annotations

import os

import torch

from sctune.config import RuntimeConfig
from sctune.errors import ConfigError, PlaceError

BF16_CAPABILITY = 8
"""Major compute capability of NVIDIA's cards from which they have bfloat16."""


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; raises ConfigError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"runtime.device={name!r}: this machine shows {torch.cuda.device_count()} GPUs; "
            "use runtime.device=auto or cpu"
        )
    return device


def check_precision(config: RuntimeConfig, device: torch.device) -> None:
    """Raises PlaceError for bfloat16 on a card that has none: another one may.

    In single precision, or emulated, the trial would be another one than on the other cards.
    """
    if config.precision != "bf16" or device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    # of NVIDIA's since Ampere
    if torch.version.hip is None and major < BF16_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise PlaceError(
            f"runtime.precision=bf16: {name} (compute capability {major}.{minor}) has no bfloat16; use another card, "
            "or runtime.precision=tf32 or fp32"
        )


def apply_runtime(config: RuntimeConfig) -> None:
    """Set the process-wide switches of a trial; each trial sets all of them, so none leaks into the next."""
    torch.backends.cuda.matmul.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.benchmark = not config.deterministic
    if config.deterministic:
        # read by cuBLAS when its first handle is made
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if config.compile:
        # torch's compiler has a switch of its own, which this sets too
        torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    else:
        # the same without importing the compiler, which takes two seconds
        torch.set_deterministic_debug_mode("warn" if config.deterministic else "default")
    # else every new tensor is filled with NaN, a fifth of a step's time, to find reads of memory that nobody wrote
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
