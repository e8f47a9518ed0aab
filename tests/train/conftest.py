"""A small image folder in the MVTec layout and a configuration that trains on it in a second."""

import numpy as np
import pytest
from PIL import Image

from sctune.config import TrialConfig

TINY = {
    "data.image_size": 64,
    "data.n_anomalies": 4,
    "data.selection": "extra",
    "model.backbone": "efficientnet_lite0",
    "model.weights": "random",
    "model.tap": "middle",
    "model.n_scales": 1,
    "model.freeze": 10,
    "augment.grid_size": 8,
    "budget.epochs": 2,
    "budget.iterations": 2,
    "budget.batch_size": 6,
    "runtime.device": "cpu",
}


def draw(rng, defect, size=72):
    """A striped texture; the defects are a bright spot, a dark scratch and a grey patch."""
    rows = np.sin(np.arange(size) / 3 + rng.uniform(0, 6))[:, None] * 40 + 120
    image = np.clip(rows + rng.normal(0, 8, (size, size)), 0, 255)
    y, x = rng.integers(10, size - 30, 2)
    if defect == "spot":
        image[y : y + 12, x : x + 12] = 250
    elif defect == "scratch":
        image[y : y + 3, x : x + 25] = 10
    elif defect == "patch":
        image[y : y + 20, x : x + 20] = 128
    return Image.fromarray(image.astype(np.uint8)).convert("RGB")


def make_folder(root, seed=0, defects=("spot", "scratch", "patch")):
    rng = np.random.default_rng(seed)
    counts = {"train/good": 50, "test/good": 12} | {f"test/{defect}": 12 for defect in defects}
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            draw(rng, folder.split("/")[1]).save(root / folder / f"{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "stripes")


@pytest.fixture(scope="session")
def two_categories(tmp_path_factory):
    root = tmp_path_factory.mktemp("categories")
    make_folder(root / "first", seed=1)
    make_folder(root / "second", seed=2)
    return root


@pytest.fixture(scope="session")
def tiny(image_folder):
    return TrialConfig().override({**TINY, "data.source": str(image_folder)})
