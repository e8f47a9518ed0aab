"""Public names of `sctune.methods.deviation.heads`."""

from sctune.methods.deviation.heads import (
    HIDDEN,
    LatentResidualHead,
    NormalHead,
    PatchResidualHead,
    PlainHead,
    top_k_mean,
)

__all__ = ["HIDDEN", "LatentResidualHead", "NormalHead", "PatchResidualHead", "PlainHead", "top_k_mean"]
