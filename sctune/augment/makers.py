"""The makers of pseudo anomalies that work on pixels, by the name that `augment.kind` gives them.

They run before rotation and normalisation; SaliencyCut runs after both, since it needs the network's gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sctune.augment.cut import Cut
from sctune.augment.cutmix import cutmix, cutmix_pair
from sctune.augment.cutpaste import cutpaste
from sctune.config import AugmentConfig

Maker = Callable[[Tensor, Tensor, AugmentConfig, torch.Generator], Cut]
"""(receivers, donors, config, generator) -> Cut; images [M, 3, H, W] in [0, 1], generator of the CPU."""

PIXEL_MAKERS: dict[str, Maker] = {"cutmix": cutmix, "cutmix_pair": cutmix_pair, "cutpaste": cutpaste}
