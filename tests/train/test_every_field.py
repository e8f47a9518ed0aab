"""Every field of the configuration does something: changing it alone changes a step, a score or a report."""

import shutil

import pytest
import torch

from sctune.config import FIELD_NAMES, Task
from sctune.errors import ConfigError, DataError
from sctune.train.trainer import Trainer

# field -> a value that differs from the tiny configuration's
CHANGED = {
    "data.n_anomalies": 6,
    "data.balance": 0.5,
    "data.selection": "seen",
    "data.partition_seed": 1,
    "data.group": r"(\w+/\w+/\d\d)\d\.png",
    "data.image_size": 96,
    "data.resize": "crop",
    "data.selection_limit": 5,
    "data.shuffle_labels": True,
    "augment.kind": "none",
    "augment.cutpaste": "scar",
    "augment.threshold": 0.7,
    "augment.threshold_mode": "area",
    "augment.grid_size": 5,
    "augment.kernel": "aligned",
    "augment.region": "salient",
    "augment.refresh": "epoch",
    "augment.paste_valid_only": False,
    "augment.rotation": "quarter",
    "augment.rotation_degrees": 10.0,
    "augment.rotation_fill": "reflect",
    "augment.flip": "both",
    "augment.shift": 0.2,
    "augment.brightness": 0.3,
    "augment.contrast": 0.3,
    "model.heads": "two_head_latent",
    "model.normal_head": "gaussian",
    "model.density_trunk": "trained",
    "model.density_features": "cells",
    "model.density_components": 2,
    "model.density_push": 2.0,
    "model.reference_count": 3,
    "model.reference_source": "training",
    "model.backbone": "resnet18",
    "model.tap": "deep",
    "model.taps": "middle,deep",
    "model.weights": "imagenet",
    "model.freeze": 3,
    "model.batch_norm": "eval",
    "model.batch_norm_momentum": 0.5,
    "model.n_scales": 2,
    "model.patch_count": 3,
    "model.patch_place": "diag",
    "model.patch_size": "half",
    "model.patch_per_sample": True,
    "model.patch_evaluation": "random",
    "model.top_k": 0.5,
    "model.pyramid_interpolation": "bilinear",
    "score.normal": 0.5,
    "score.seen": 0.5,
    "score.pseudo": 0.5,
    "score.density": 3.0,
    "score.full_scale": 0.8,
    "score.top_k": 0.5,
    "score.turns": 4,
    "loss.margin": 3.0,
    "loss.prior": "sampled",
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.1,
    "optim.step_fraction": 0.5,
    "optim.step_when": "start",
    "optim.gamma": 0.5,
    "optim.clip_norm": 0.01,
    "optim.final_statistics": "batches",
    "optim.average": "ema",
    "optim.average_decay": 0.5,
    "optim.average_from": 0.0,
    "budget.epochs": 3,
    "budget.iterations": 3,
    "budget.batch_size": 9,
    "runtime.precision": "bf16",
    "seed": 1,
}
# what a field needs to be seen at all
NEEDS = {
    "data.resize": {"data.source": "wide"},
    "model.tap": {"data.image_size": 128},
    "model.n_scales": {"data.image_size": 128},
    "model.pyramid_interpolation": {"model.n_scales": 2, "data.image_size": 128},
    "model.backbone": {"model.freeze": 2},
    "optim.step_fraction": {"optim.step_fraction": 1.0},
    "optim.gamma": {"optim.step_fraction": 0.5},
    "optim.average_decay": {"optim.average": "ema"},
    "optim.average_from": {"optim.average": "mean"},
    "optim.step_when": {"optim.step_fraction": 1.0},
    "augment.cutpaste": {"augment.kind": "cutpaste"},
    "model.reference_count": {"model.heads": "two_head_latent"},
    "model.reference_source": {"model.heads": "two_head_latent", "augment.kind": "cutmix"},
    "model.patch_place": {"model.patch_count": 2},
    "model.density_trunk": {"model.normal_head": "gaussian"},
    "model.density_features": {"model.normal_head": "gaussian"},
    "model.density_components": {"model.normal_head": "mixture"},
    "model.density_push": {"model.normal_head": "gaussian"},
    "score.density": {"model.normal_head": "gaussian"},
    "score.full_scale": {"model.n_scales": 2, "data.image_size": 128},
    "score.seen": {"model.heads": "four_head"},
    "score.pseudo": {"model.heads": "four_head"},
}

SHOWN_ELSEWHERE = {
    "method.name": "tests/methods/test_foreign_method.py",
    "data.source": "test_source_and_category",
    "data.category": "test_source_and_category",
    "data.setting": "test_trainer.test_all_three_settings_train",
    "data.known_class": "test_trainer.test_all_three_settings_train",
    "data.anomalies": "test_split_cross.test_all_of_the_pool_and_nothing_else_is_added_without_a_fold",
    "data.calibration_share": "test_split.test_more_normals_calibrate_where_asked",
    "data.skip_corrupt": "test_skip_corrupt",
    "data.range": "test_stored_values.test_what_the_range_does_not_hold_is_refused_and_never_cut",
    "data.page": "test_stored_values.test_pages_and_frames_are_named_and_chosen",
    "data.alpha": "test_stored_values.test_transparency_is_refused_or_laid_on_what_was_asked_for",
    "data.pixel_limit": "test_stored_values.test_the_pixel_limit_is_a_setting",
    "data.reduce": "test_stored_values.test_large_jpegs_are_decoded_smaller_and_look_the_same",
    "data.allow_duplicates": "test_check.test_copies_in_training_and_test_are_refused_unless_allowed",
    "augment.on_flat": "test_saliencycut.test_constant_saliency",
    "augment.allow_self": "test_batches.test_no_donor_is_its_own_receiver",
    "runtime.device": "test_runtime",
    "runtime.channels_last": "test_runtime",
    "runtime.compile": "test_runtime",
    "runtime.deterministic": "test_runtime",
}


def outcome(config):
    """Reports, scores and state after two epochs, without times; a refusal counts too."""
    trainer = Trainer(config)
    reports = [trainer.run_epoch() for _ in range(min(2, config.budget.epochs))]
    metrics = [{k: v for k, v in r.metrics.items() if k not in ("seconds", "images_per_second")} for r in reports]
    return metrics, [dict(r.scores) for r in reports], [r.epochs for r in reports]


_OUTCOMES = {}


def outcome_of_base(config):
    """The same, trained once for all fields that begin from this configuration, which most of them share."""
    key = config.model_dump_json()
    if key not in _OUTCOMES:
        _OUTCOMES[key] = outcome(config)
    return _OUTCOMES[key]


def test_no_field_is_forgotten():
    assert set(FIELD_NAMES) == set(CHANGED) | set(SHOWN_ELSEWHERE)


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory, image_folder):
    from PIL import Image

    target = tmp_path_factory.mktemp("wide") / "data"
    shutil.copytree(image_folder, target)
    for path in target.rglob("*.png"):
        with Image.open(path) as image:
            wide = image.resize((144, 72))
        wide.save(path)
    return target


@pytest.mark.parametrize("field", sorted(CHANGED))
def test_field_reaches_the_trainer(field, tiny, wide_folder):
    needs = {k: str(wide_folder) if v == "wide" else v for k, v in NEEDS.get(field, {}).items()}
    base = tiny.override(needs)
    changed = base.override({field: CHANGED[field]})
    assert outcome_of_base(base) != outcome(changed)


def test_what_is_not_changed_has_the_same_outcome(tiny):
    """Without which every field would seem to do something; trained again after all the others of this file."""
    again = tiny.override({"model.heads": tiny.model.heads})
    assert outcome_of_base(tiny) == outcome(again)


def test_source_and_category(tiny, two_categories):
    results = []
    for category in ("first", "second"):
        config = tiny.override({"data.source": str(two_categories), "data.category": category})
        results.append(outcome(config))
    assert results[0] != results[1] and results[0] != outcome_of_base(tiny)


def test_skip_corrupt(tiny, tmp_path, image_folder):
    root = tmp_path / "data"
    shutil.copytree(image_folder, root)
    (root / "train/good/003.png").write_bytes(b"no image")
    config = tiny.override({"data.source": str(root)})
    with pytest.raises(DataError, match=r"003\.png"):
        Trainer(config)
    trainer = Trainer(config.override({"data.skip_corrupt": True}))
    assert trainer.skipped == ("train/good/003.png",)


def test_runtime(tiny):
    plain = Trainer(tiny)
    weight = next(p for p in plain.method.detector.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.are_deterministic_algorithms_enabled()
    other = Trainer(
        tiny.override({"runtime.channels_last": False, "runtime.deterministic": False, "runtime.compile": True})
    )
    weight = next(p for p in other.method.detector.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert weight.is_contiguous() and not torch.are_deterministic_algorithms_enabled()
    assert type(other.method.step.forward).__name__ == "OptimizedModule" != type(plain.method.step.forward).__name__
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"runtime\.device='cuda:7'"):
            Trainer(tiny.override({"runtime.device": "cuda:7"}))


def test_task_wins_over_the_configuration(tiny, image_folder):
    task = Task(source=str(image_folder), setting="hard", known_class="patch", seed=9)
    config = Trainer(tiny.override({"data.selection": "auto"}), task).config
    assert (config.seed, config.data.setting, config.data.known_class) == (9, "hard", "patch")
