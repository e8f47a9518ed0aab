"""One training step of sctune against a plain reference step, on real images at 224 px: time and ratio.

Both sides get the same model, weights, batches, angles and patch positions, take turns, and are first shown to
compute the same masks and losses. Run alone: `python benchmarks/bench_step.py`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# threads that spin while they wait would measure the other work of the machine; read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from reference_step import ReferenceStep
from torch import Tensor

from sctune.augment.saliency import smooth_saliency
from sctune.config import TrialConfig, load_profile
from sctune.data.batches import PSEUDO, draw_slots, rotate, rotation_angles, stream
from sctune.data.catalog import open_dataset
from sctune.data.decode import Decoding
from sctune.data.images import ImageCache
from sctune.methods.base import TaskImages
from sctune.methods.deviation.detector import Detector, build_detector
from sctune.methods.deviation.step import TrainingStep
from sctune.methods.pixels import memory_format, normalise, to_pixels
from sctune.train.runtime import apply_runtime

SIZE, BATCH = 224, 18
NORMALS, ANOMALIES = 120, 10
TARGET = 1.8

COMMON = {
    "data.image_size": SIZE,
    "budget.batch_size": BATCH,
    "runtime.device": "cpu",
    "model.normal_head": "mlp",
    # 112 px, the second scale, gives a map of 4 cells: too few for four diagonal patches
    "model.patch_place": "grid2d",
    # the recipe to the letter, where sctune's defaults differ from it; the cost is the same
    "augment.kernel": "official",
    "augment.on_flat": "official",
    "augment.allow_self": True,
    "augment.paste_valid_only": False,
}
MODELS = {
    "resnet18": load_profile("gpu").override({**COMMON, "model.weights": "random"}),
    "efficientnet_lite0": load_profile("cpu").override(COMMON),
}
"""The paper's model (two scales, all weights trained) and the cpu profile's, both at 224 px."""


@dataclass(frozen=True)
class Sides:
    """Both steps, built alike. `plain` runs under torch's defaults, `fast` under the configuration's switches."""

    config: TrialConfig
    fast: TrainingStep
    plain: ReferenceStep

    def run_fast(self, number: int) -> dict[str, Tensor]:
        apply_runtime(self.config.runtime)
        return self.fast.run(number)

    def run_plain(self, number: int) -> dict[str, Tensor]:
        torch.use_deterministic_algorithms(False)
        return self.plain.run(number)


def build(config: TrialConfig, cache: Path) -> Sides:
    """Fresh models with equal weights on both sides, and the same files: decoded once here, each time there."""
    dataset = open_dataset("elpv")
    chosen = [*dataset.normals[:NORMALS], *dataset.anomalies[:ANOMALIES]]
    paths = [file.path for file in chosen]
    cached = ImageCache(cache).array(dataset.root, paths, Decoding(config.data.image_size))
    rows = np.array([cached.index[path] for path in paths])
    fast, plain = build_detector(config), build_detector(config)
    plain.backbone.folds = False
    fast.train().to(memory_format=memory_format(config.runtime))
    images = TaskImages(cached.array, rows[:NORMALS], rows[NORMALS:])
    files = [dataset.root / path for path in paths]
    return Sides(
        config,
        TrainingStep(config, fast, adam(config, fast), images, torch.device("cpu")),
        ReferenceStep(config, plain, adam(config, plain), files[:NORMALS], files[NORMALS:]),
    )


def adam(config: TrialConfig, detector: Detector) -> torch.optim.Adam:
    trained = [weight for weight in detector.parameters() if weight.requires_grad]
    return torch.optim.Adam(trained, lr=config.optim.lr, weight_decay=config.optim.weight_decay)


def check(config: TrialConfig, cache: Path) -> list[str]:
    """Both sides do the same work; ends the benchmark where they do not.

    Without rotation, masks, losses and gradient norms of the first step agree to rounding. With it, the two
    libraries turn pixels on the border between two source pixels differently, and the loss follows.
    """
    lines = []
    for degrees, least_equal, tolerance in ((0.0, 0.9999, 5e-3), (180.0, 0.95, 0.05)):
        sides = build(config.override({"augment.rotation_degrees": degrees}), cache)
        masks, batch = first_masks(sides.fast)
        plain, fast = sides.run_plain(0), sides.run_fast(0)
        equal = {
            "masks": float((masks == plain["masks"]).float().mean()),
            "pixels": float(((batch - plain["images"]).abs().amax(dim=1) < 1e-4).float().mean()),
        }
        gaps = {
            name: abs(float(fast[name] - plain[name])) / abs(float(plain[name])) for name in ("loss", "gradient_norm")
        }
        shown = [f"{value:.3%} of {name} equal" for name, value in equal.items()]
        shown += [f"{name} within {gap:.1e}" for name, gap in gaps.items()]
        lines.append(f"rotation up to {degrees:g} degrees: {', '.join(shown)}")
        # with other pixels the gradient of an untrained network may differ by more than its loss
        judged = gaps.values() if degrees == 0 else [gaps["loss"]]
        if min(equal.values()) < least_equal or max(judged) > tolerance:
            raise SystemExit(f"the two sides compute different things: {lines[-1]}")
    return lines


def first_masks(step: TrainingStep) -> tuple[Tensor, Tensor]:
    """sctune's pasted masks [M, 1, S, S] and trained batch [B, 3, S, S] of step 0, without the update."""
    config, images = step.config, step.images
    apply_runtime(config.runtime)
    slots = draw_slots(
        len(images.normals), len(images.anomalies), config.normal_slots, BATCH, 0, config.seed, True, True
    )
    rows = [images.normals[slots.index[: config.normal_slots]], images.anomalies[slots.index[config.normal_slots :]]]
    angles = rotation_angles(BATCH, config.augment.rotation_degrees, stream(config.seed, "rotation", 0))
    batch = normalise(rotate(to_pixels(images.take(np.concatenate(rows)), step.device), angles)[0])
    places = np.flatnonzero(slots.labels == PSEUDO)
    gradient, _ = step.saliency_gradient(batch[slots.donors], 0)
    saliency = smooth_saliency(gradient, config.augment.grid_size, config.augment.kernel)
    masks = saliency <= config.augment.threshold
    batch[places] = torch.where(masks, batch[slots.donors], batch[places])
    return masks, batch


def timed(step: Callable[[int], object], number: int) -> float:
    started = time.perf_counter()
    step(number)
    return time.perf_counter() - started


def compare(name: str, threads: int, pairs: int, cache: Path) -> float:
    """Interleaved pairs of steps with equal numbers; prints medians and gives the ratio of the medians."""
    torch.set_num_threads(threads)
    sides = build(MODELS[name], cache)
    timed(sides.run_plain, 0), timed(sides.run_fast, 0)
    plain, fast = [], []
    for number in range(1, pairs + 1):
        plain.append(timed(sides.run_plain, number))
        fast.append(timed(sides.run_fast, number))
    ratio = statistics.median(plain) / statistics.median(fast)
    each = [slow / quick for slow, quick in zip(plain, fast, strict=True)]
    print(
        f"{name:18s} {threads} threads, {pairs} pairs: reference {figures(plain)}, sctune {figures(fast)}, "
        f"ratio {ratio:.2f} (fastest steps {min(plain) / min(fast):.2f}, pairs {min(each):.2f} to {max(each):.2f}), "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return ratio


def figures(seconds: list[float]) -> str:
    low, middle, high = (1000 * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"{middle:.0f} ms ({low:.0f} to {high:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of steps with two threads; half as many with one")
    parser.add_argument("--model", choices=tuple(MODELS), action="append", help="default: both")
    pairs, names = (lambda args: (args.pairs, args.model or list(MODELS)))(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for name in names:
            torch.set_num_threads(2)
            print(f"{name}, first step of both sides:", *check(MODELS[name], cache), sep="\n  ", flush=True)
            for threads, count in ((2, pairs), (1, max(3, pairs // 2))):
                ratio = compare(name, threads, count, cache)
                if threads == 2:
                    print(f"  target {TARGET}: {'met' if ratio >= TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
