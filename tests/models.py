"""Small models for tests: the real detector with random weights, calibrated on images of noise."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from sctune.config import TrialConfig
from sctune.data.decode import Decoding
from sctune.deploy.calibration import Calibration, prepare_image
from sctune.deploy.model import ModelParts, write_model_folder
from sctune.methods.deviation.detector import Detector, build_detector
from sctune.methods.deviation.method import DeviationMethod
from sctune.metrics.threshold import conformal_threshold

SMALL = {
    "data.range": "container",
    "data.image_size": 64,
    "model.backbone": "efficientnet_lite0",
    "model.tap": "middle",
    "model.n_scales": 1,
    "model.patch_place": "grid2d",
    "model.freeze": 0,
    "model.weights": "random",
    "augment.grid_size": 8,
}


def small_config(**changes: Any) -> TrialConfig:
    """changes: dotted names with `__` for the dot."""
    return TrialConfig().override(SMALL | {name.replace("__", "."): value for name, value in changes.items()})


def noise_png(seed: int, side: int = 80, spot: bool = False) -> bytes:
    """A grey square of noise as PNG; spot: with a bright square in it, which is what an anomaly is here."""
    random = np.random.default_rng(seed)
    pixels = random.integers(90, 150, (side, side, 3), np.uint8)
    if spot:
        row, column = random.integers(0, side - side // 4, 2)
        pixels[row : row + side // 4, column : column + side // 4] = 255
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def small_detector(config: TrialConfig) -> Detector:
    """Random weights whose batch norm has seen images, so that different images have different scores."""
    detector = build_detector(config).train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean over what it sees
    generator, side = torch.Generator().manual_seed(0), config.data.image_size
    if detector.needs_references:
        shape = (config.model.reference_count, side, side, 3)
        detector.set_references(np.random.default_rng(1).integers(90, 150, shape, np.uint8))
    with torch.no_grad():
        for _ in range(3):
            detector(torch.randn(8, 3, side, side, generator=generator))
    return detector.eval()


def small_method(config: TrialConfig) -> DeviationMethod:
    """As `small_detector`, as a method on the CPU that can only score."""
    return DeviationMethod(config, torch.device("cpu"), small_detector(config))


def write_small_model(folder: Path, config: TrialConfig | None = None, calibrated: int = 40) -> Path:
    """A model's folder, with a threshold for one false alarm in ten from `calibrated` images (0: without one)."""
    config = config or small_config()
    detector = small_detector(config)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.new"
    save_file({name: value.contiguous() for name, value in detector.state_dict().items()}, weights)
    meta = {"study": "first", "trial": 0, "licence": "CC BY-NC-SA 4.0", "attribution": "Images: somebody"}
    parts = ModelParts(meta)
    if calibrated:
        data = config.data
        images = [prepare_image(noise_png(1000 + seed), Decoding.of(data)) for seed in range(calibrated)]
        scores = detector.score_alike(np.stack([image.pixels for image in images])).tolist()
        calibration = Calibration.of("images of noise", scores, images)
        parts = ModelParts(meta, conformal_threshold(scores, 0.1), calibration, ["0" * 64], None, "# A model\n")
    write_model_folder(folder, config, weights, parts)
    weights.unlink()
    return folder
