"""What every method of the registry must hold where no test of a single one looks: two as an ensemble, and on a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from sctune.config import TrialConfig
from sctune.config.methods import BUILT_IN
from sctune.deploy.parity import score_parity
from sctune.methods.base import Method, TaskImages
from sctune.methods.ensemble import Ensemble
from sctune.methods.pixels import to_pixels
from sctune.methods.registry import fresh_method, trained_method
from sctune.methods.saoe.method import SaoeMethod
from sctune.train.heatmap import some_heat_maps
from sctune.train.rescore import score_variants
from sctune.train.runtime import apply_runtime

CPU = torch.device("cpu")
NOISE = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
NORMAL, ANOMALOUS, SHOWN = np.arange(14), np.arange(14, 18), NOISE[18:]
gpu = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)
OWN: dict[str, dict[str, object]] = {
    "saoe": {"method.members": "confetti,turned"},
    "ssm": {"method.width": 2},
    "cutpaste": {"method.total_updates": 2},
    "kdad": {"method.total_updates": 2},
}
"""Of the methods whose own length or size is more than a look at them needs."""


def config_of(tiny: TrialConfig, name: str, **more: object) -> TrialConfig:
    return tiny.override({"method.name": name, "budget.iterations": 1, **OWN.get(name, {}), **more})


def prepared(config: TrialConfig, device: torch.device = CPU) -> Method:
    method = fresh_method(config, device)
    method.prepare(TaskImages(NOISE, NORMAL, ANOMALOUS))
    return method


@pytest.fixture(scope="module", params=BUILT_IN)
def pair(request: pytest.FixtureRequest, tiny: TrialConfig) -> Sequence[Method]:
    """Two trained methods of other seeds; those of saoe do not have the same members."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SaoeMethod, "_unlike_turns", lambda self, images: (1,) if self.config.seed == 1 else ())
        for seed in (1, 2):
            method = prepared(config_of(tiny, request.param, seed=seed))
            method.run_epoch(0, lambda: False)
            made.append(method)
    return made


def test_an_ensemble_is_the_mean_in_every_form(pair: Sequence[Method]) -> None:
    both = Ensemble(pair)
    alone = np.array([one.score(SHOWN) for one in pair])
    assert np.isfinite(alone).all() and (alone[0] != alone[1]).all()
    scores = both.score(SHOWN)
    np.testing.assert_array_equal(scores, alone.mean(axis=0))
    again = trained_method(both.config, CPU, {name: value.clone() for name, value in both.model_state().items()})
    assert isinstance(again, Ensemble)
    np.testing.assert_array_equal(again.score(SHOWN), scores)
    with torch.inference_mode():
        found = both.module()(to_pixels(SHOWN, CPU)).double().numpy()
    assert score_parity(scores, found, None).holds


def test_maps_of_an_ensemble_are_the_mean(pair: Sequence[Method]) -> None:
    both, some = Ensemble(pair), SHOWN[:2]
    for kind in ("cells", "gradients"):
        maps = getattr(both, kind)(some)
        alone = [getattr(one, kind)(some) for one in pair]
        assert [one is None for one in alone] == [maps is None] * 2
        if maps is not None:
            assert maps.shape == (2, 64, 64)
            np.testing.assert_allclose(maps, np.mean(alone, axis=0), rtol=1e-5, atol=1e-7)
    shown = some_heat_maps(both, some, "gradient")
    assert shown.shape == (2, 64, 64) and (shown.max(axis=(1, 2)) > shown.min(axis=(1, 2))).all()


def test_views_are_pictures_or_shares(pair: Sequence[Method]) -> None:
    views = pair[0].views(SHOWN[:2])
    # methods that make pictures, or compare maps, on the way to a score
    assert bool(views) == (pair[0].config.method.name in ("mlep", "ssm", "cutpaste", "kdad"))
    for name, shown in views.items():
        assert len(shown) == 2 and name
        if shown.dtype == np.uint8:
            assert shown.ndim == 4 and shown.shape[3] == 3
        else:
            assert shown.ndim == 3 and 0 <= shown.min() <= shown.max() <= 1


def test_the_first_variant_is_the_score_itself(pair: Sequence[Method]) -> None:
    for one in pair:
        (scores,) = one.variant_scores(SHOWN, score_variants(one.config)[:1])
        np.testing.assert_allclose(scores, one.score(SHOWN), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["saliencycut", "cutmix", "none"])
def test_saliency_is_shown_where_training_cuts_by_it(tiny: TrialConfig, kind: str) -> None:
    found = prepared(config_of(tiny, "deviation", **{"augment.kind": kind})).saliency(SHOWN[:2])
    assert (found is not None) == (kind == "saliencycut")
    if found is not None:
        assert found.shape == (2, 64, 64) and 0 <= found.min() < found.max() <= 1


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("device_type", ["cpu", pytest.param("cuda", marks=gpu)])
def test_a_state_goes_on_bit_by_bit_and_a_cpu_scores_what_was_trained(
    tiny: TrialConfig, name: str, device_type: str
) -> None:
    device = torch.device(device_type)
    turned = {"method.turned": "always"} if name == "saoe" else {}
    config = config_of(tiny, name, **{"runtime.device": device_type, **turned})
    apply_runtime(config.runtime)
    whole, later = prepared(config, device), prepared(config, device)
    whole.run_epoch(0, lambda: False)
    tensors, values = whole.state()
    # as a checkpoint keeps them
    later.load_state(
        {key: value.detach().cpu().clone() for key, value in tensors.items()}, json.loads(json.dumps(values))
    )
    if config.entry.trains:
        for one in (whole, later):
            one.run_epoch(1, lambda: False)
    # ssm's threshold of one round is no number
    torch.testing.assert_close(later.state()[0], whole.state()[0], rtol=0, atol=0, equal_nan=True)
    model = {key: value.detach().cpu() for key, value in whole.model_state().items()}
    there = trained_method(config.override({"runtime.device": "cpu"}), CPU, model)
    np.testing.assert_allclose(there.score(SHOWN), whole.score(SHOWN), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_dry_run_can_time_it(tiny: TrialConfig, name: str) -> None:
    method = prepared(config_of(tiny, name))
    seconds, steps = method.time_step()
    assert 0 < seconds < 60 and steps >= 1
