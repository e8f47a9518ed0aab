"""Several models as one: the mean of their scores and maps, in every form, and what is no ensemble."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sctune.config import TrialConfig, load_profile
from sctune.deploy.export import export_parity, generated_images
from sctune.deploy.model import Model, ModelParts
from sctune.errors import CheckpointError
from sctune.methods.ensemble import Ensemble
from sctune.methods.registry import fresh_method, trained_member, trained_method
from sctune.train.heatmap import heat_maps

CPU = torch.device("cpu")
IMAGES = generated_images(64, 6)


@pytest.fixture(scope="module")
def config() -> TrialConfig:
    return load_profile("smoke").override({"data.image_size": 64, "model.weights": "random", "runtime.device": "cpu"})


@pytest.fixture(scope="module")
def ensemble(config: TrialConfig) -> Ensemble:
    members = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        own = fresh_method(config.override({"seed": seed}), CPU)
        members.append(trained_member(config, CPU, own.model_state()))
    return Ensemble(members)


def test_scores_and_maps_are_the_mean(ensemble: Ensemble) -> None:
    alone = np.stack([member.score(IMAGES) for member in ensemble.members])
    assert len({round(float(row[0]), 6) for row in alone}) == 3
    np.testing.assert_allclose(ensemble.score(IMAGES), alone.mean(0), rtol=0, atol=1e-12)
    for kind in ("gradient", "score"):
        maps = [heat_maps(member, IMAGES, kind) for member in ensemble.members]
        found = heat_maps(ensemble, IMAGES, kind)
        assert found is not None
        np.testing.assert_allclose(found, np.mean(np.array(maps), axis=0), rtol=1e-5, atol=1e-7)


def test_an_image_has_one_score_whatever_is_beside_it(ensemble: Ensemble) -> None:
    whole = ensemble.score(IMAGES)
    assert [float(ensemble.score(IMAGES[n : n + 1])[0]) for n in range(6)] == whole.tolist()


def test_it_comes_back_from_its_tensors(ensemble: Ensemble, config: TrialConfig) -> None:
    tensors = {name: value.clone() for name, value in ensemble.model_state().items()}
    again = trained_method(config, CPU, tensors)
    assert isinstance(again, Ensemble) and len(again.members) == 3
    assert again.score(IMAGES).tolist() == ensemble.score(IMAGES).tolist()
    gone = {name: value for name, value in tensors.items() if not name.startswith("member/1/")}
    with pytest.raises(CheckpointError, match=r"members \[0, 2\]"):
        trained_method(config, CPU, gone)
    with pytest.raises(CheckpointError, match="is of no member"):
        trained_method(config, CPU, tensors | {"other": tensors["member/0/" + next(iter(tensors))[9:]]})


def test_one_file_carries_its_members(ensemble: Ensemble, config: TrialConfig, tmp_path: Path) -> None:
    """Two of them, since each takes as long to export as a model of its own."""
    model = Model(Ensemble(ensemble.members[:2]), config, ModelParts({}))
    found = export_parity(model, tmp_path, "onnx", IMAGES)
    assert found.holds and found.images == 6


def test_one_model_is_no_ensemble(ensemble: Ensemble) -> None:
    with pytest.raises(ValueError, match="2 are needed"):
        Ensemble(ensemble.members[:1])
