"""The kind of heat map is chosen by the masks of held-out defects, and says how many masks that are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sctune.config import TrialConfig
from sctune.deploy.build import choose_heat_map
from sctune.deploy.card import CardFacts, model_card
from sctune.deploy.model import ModelParts
from sctune.train.heatmap import KINDS
from sctune.train.trainer import Trainer
from tests.conftest import make_folder


def test_masks_of_0_and_1_count_and_empty_ones_are_left_out(tiny: TrialConfig, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", defects=("spot", "scratch"))
    config = tiny.override({"data.source": str(root)})
    selection = [file for file in Trainer(config).split.selection if file.label == 1]
    for number, file in enumerate(selection):
        mask = np.zeros((72, 72), np.uint8)
        mask[20:40, 20:40] = number > 0
        place = root / "ground_truth" / file.kind / f"{Path(file.path).stem}_mask.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(place)
    trainer = Trainer(config)
    chosen = choose_heat_map(trainer)
    used = len(selection) - 1
    assert (chosen["images"], chosen["masks"], chosen["left_out"]) == (used, used, 1)
    assert set(chosen["aupro"]) == set(KINDS) and chosen["kind"] == max(KINDS, key=lambda kind: chosen["aupro"][kind])
    text = model_card(ModelParts({}, heat_map=chosen), CardFacts(config, {}, {}, {}))
    assert f"the better by AUPRO on {used} held-out defects with masks (" in text
    assert "; 1 more have masks that mark nothing or do not fit" in text
