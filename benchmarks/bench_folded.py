"""How much quicker do blocks that do not train run as folded convolutions, in batches, on one core?

Both sides are the same network with the same weights on the same images; they take turns, and the medians' ratio is
shown with the fastest and slowest pair. Maps are compared first: they differ by rounding alone.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from measure_common import HARDWARE, load_average, print_table
from torch import Tensor

from sctune.backbones.trunk import Backbone, build_backbone
from sctune.config import load_profile
from sctune.train.memory import keep_freed_memory

CLOSE = 1e-4
"""Most that maps may differ by, as a share of their norm."""


def seconds(net: Backbone, images: Tensor, frozen: bool) -> float:
    started = time.process_time()
    if frozen:
        net.frozen(images)
    else:
        net(images)
    return time.process_time() - started


def compared(name: str, size: int, batch: int, frozen: bool, pairs: int) -> list[str]:
    """A line of the table; frozen: of the blocks that the profile keeps fixed alone."""
    profile = load_profile("cpu")
    own = name == profile.model.backbone
    config = profile.override({"model.backbone": name, "model.freeze": profile.model.freeze if own else 0}).model
    plain = build_backbone(config, None).eval().to(memory_format=torch.channels_last)
    quick = copy.deepcopy(plain)
    quick.folds = True
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        away = float((quick(images) - plain(images)).norm() / plain(images).norm())
        if away > CLOSE:
            raise SystemExit(f"{name}: the maps differ by {away:.1e} of their norm")
        for net in (plain, quick):
            seconds(net, images, frozen)
        times = [(seconds(plain, images, frozen), seconds(quick, images, frozen)) for _ in range(pairs)]
    ratios = [one / other for one, other in times]
    before, after = (statistics.median(part) * 1000 for part in zip(*times, strict=True))
    part = f"first {config.freeze} blocks" if frozen else "up to stride 16"
    ratio = f"**{before / after:.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
    return [name, part, str(batch), f"{before:.1f} ms", f"{after:.1f} ms", ratio, f"{away:.0e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["efficientnet_lite0", "resnet18"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 18, 32])
    parser.add_argument("--size", type=int, default=160, help="side of an image in pixels")
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory(torch.device("cpu"))
    rows = [
        compared(name, options.size, batch, frozen, options.pairs)
        for name in options.backbones
        for frozen in ((True, False) if name == load_profile("cpu").model.backbone else (False,))
        for batch in options.batches
    ]
    print(f"{HARDWARE}, one thread, {options.size} px, load {load_average()}\n")
    print_table(["network", "part", "images", "as it is", "folded", "ratio", "maps differ by"], rows)


if __name__ == "__main__":
    main()
