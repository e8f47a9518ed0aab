"""What a training ends with: averaged weights, and batch-norm statistics estimated anew; both by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from sctune.config import TrialConfig
from sctune.data.batches import endless
from sctune.errors import CheckpointError, StoppedError
from sctune.methods.base import MODEL
from sctune.methods.pixels import normalise, to_pixels
from sctune.train.trainer import Trainer

LENGTH = {"budget.epochs": 3, "budget.iterations": 3, "optim.lr": 1e-2}


def weights_of_steps(config: TrialConfig) -> list[dict[str, Tensor]]:
    """The trained detector's parameters after each step of a training without an average."""
    trainer = Trainer(config)
    method = trainer.method
    kept = []
    run = method.step.run

    def remembering(number: int) -> dict[str, Tensor]:
        figures = run(number)
        kept.append({name: value.detach().clone() for name, value in method.detector.named_parameters()})
        return figures

    method.step.run = remembering
    list(trainer.fit())
    return kept


def finished(config: TrialConfig) -> tuple[Trainer, dict[str, Tensor]]:
    trainer = Trainer(config)
    list(trainer.fit())
    return trainer, trainer.state()[0]


@pytest.mark.parametrize(
    ("values", "begins"),
    [
        ({"optim.average": "ema", "optim.average_decay": 0.8}, 0),
        ({"optim.average": "mean", "optim.average_from": 0.5}, 4),
        ({"optim.average": "mean", "optim.average_from": 0.0}, 0),
    ],
)
def test_an_average_by_hand(tiny: TrialConfig, values: dict[str, object], begins: int) -> None:
    config = tiny.override(LENGTH)
    steps = weights_of_steps(config)
    trainer, state = finished(config.override(values))
    expected = {name: value.double() for name, value in steps[begins].items()}
    for count, weights in enumerate(steps[begins + 1 :], 1):
        share = 0.2 if values["optim.average"] == "ema" else 1 / (count + 1)
        expected = {name: (1 - share) * value + share * weights[name] for name, value in expected.items()}
    moved = 0
    for name, value in expected.items():
        assert torch.allclose(state[f"{MODEL}{name}"].double(), value, atol=1e-6), name
        # what trains is not touched by it
        assert torch.equal(state[f"raw/{name}"], steps[-1][name])
        moved += not torch.equal(state[f"{MODEL}{name}"], steps[-1][name])
    assert moved > 10
    images = trainer.selection.images
    averaged = trainer.method.scored.score_images(images)
    assert np.array_equal(trainer.method.scorer()(images), averaged)
    assert not np.array_equal(trainer.method.detector.score_images(images), averaged)
    pixels = to_pixels(images[:4], torch.device("cpu"))
    np.testing.assert_allclose(trainer.method.module()(pixels).numpy(), averaged[:4], atol=1e-4)


def test_before_its_beginning_the_average_is_the_last_step(tiny: TrialConfig) -> None:
    config = tiny.override(LENGTH | {"optim.average": "mean", "optim.average_from": 0.5})
    trainer = Trainer(config)
    plain = Trainer(config.override({"optim.average": "none"}))
    assert trainer.run_epoch().scores == plain.run_epoch().scores
    assert trainer.run_epoch().scores != plain.run_epoch().scores


@pytest.mark.parametrize(
    "values",
    [
        {"optim.average": "ema", "optim.final_statistics": "normals"},
        {"optim.average": "mean", "optim.average_from": 0.5, "optim.final_statistics": "batches"},
        {"optim.average": "mean", "model.heads": "four_head", "model.reference_source": "training"},
        {"optim.final_statistics": "batches", "augment.refresh": "epoch", "model.batch_norm_momentum": 0.3},
        {"model.batch_norm": "eval", "optim.final_statistics": "normals", "model.heads": "two_head_latent"},
    ],
)
def test_a_continued_training_equals_an_uninterrupted_one(tiny: TrialConfig, values: dict[str, object]) -> None:
    augmented = {"augment.rotation": "quarter", "augment.flip": "both", "augment.shift": 0.1, "augment.contrast": 0.1}
    config = tiny.override(LENGTH | augmented | values)
    trainer = Trainer(config)
    whole = [dict(report.scores) for report in trainer.fit()]
    first, later = Trainer(config), Trainer(config)
    first.run_epoch()
    first.run_epoch()
    later.load_state(*first.state())
    assert [dict(report.scores) for report in later.fit()] == whole[2:]
    state, last = later.state()[0], trainer.state()[0]
    assert state.keys() == last.keys() and all(torch.equal(state[name], last[name]) for name in last)


def test_a_state_without_its_average_is_refused(tiny: TrialConfig) -> None:
    trainer = Trainer(tiny.override({"optim.average": "ema"}))
    tensors, values = trainer.method.state()
    for held in ({}, {"averaged": "3"}, {"averaged": -1}):
        with pytest.raises(CheckpointError, match=r"averaged is .* no number of steps"):
            trainer.method.load_state(tensors, held)
    kept = {name: value for name, value in tensors.items() if not name.startswith("raw/")}
    with pytest.raises(CheckpointError, match="does not fit the model"):
        trainer.method.load_state(kept, values)
    with pytest.raises(CheckpointError, match="does not fit the optimiser: 'raw/"):
        Trainer(tiny).method.load_state(tensors, {})


def test_statistics_are_the_mean_over_normals_as_they_are_scored(tiny: TrialConfig) -> None:
    config = tiny.override(LENGTH | {"optim.final_statistics": "normals"})
    plain, _ = finished(config.override({"optim.final_statistics": "running"}))
    trainer, _ = finished(config)
    step, detector = plain.method.step, copy.deepcopy(plain.method.detector).train()
    inputs: list[Tensor] = []
    # the first batch norm behind the frozen blocks: what it sees depends on no other that is estimated anew
    names = [name for name, norm in detector.backbone.named_modules() if isinstance(norm, torch.nn.BatchNorm2d)]
    name = next(name for name in names if detector.backbone.get_submodule(name).training)
    detector.backbone.get_submodule(name).register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        for number in range(9, 12):
            rows = step.images.normals[endless(len(step.images.normals), 6, number, config.seed, "statistics")]
            detector(normalise(to_pixels(step.images.take(rows), torch.device("cpu"))))
    expected = torch.stack([seen.mean(dim=(0, 2, 3)) for seen in inputs]).mean(dim=0)
    spread = torch.stack([seen.var(dim=(0, 2, 3)) for seen in inputs]).mean(dim=0)
    found = trainer.method.detector.backbone.get_submodule(name)
    assert torch.allclose(found.running_mean, expected, atol=1e-5)
    assert torch.allclose(found.running_var, spread, rtol=1e-4)
    assert not torch.allclose(found.running_mean, plain.method.detector.backbone.get_submodule(name).running_mean)


@pytest.mark.parametrize("source", ["batches", "normals"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_only_statistics_that_training_updates_are_estimated_anew(tiny: TrialConfig, source: str, mode: str) -> None:
    config = tiny.override({"model.batch_norm": mode})
    before = finished(config)[1]
    changed = config.override({"optim.final_statistics": source})
    after = finished(changed)[1]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.rsplit(".", 1)[1] in ("running_mean", "running_var") for name in moved)
    blocks = {int(name.split(".")[2]) for name in moved if name.startswith("model/backbone")}
    assert blocks == (set() if mode == "eval" else set(range(config.model.freeze, max(blocks) + 1)))
    assert "model/anomaly.conv.1.running_mean" in moved
    # reports before the last one know nothing of it
    first, plain = Trainer(changed).run_epoch(), Trainer(config).run_epoch()
    assert dict(first.scores) == dict(plain.scores)


def test_estimating_stops_when_it_is_asked_to(tiny: TrialConfig) -> None:
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > 3

    config = tiny.override({"budget.epochs": 1, "budget.iterations": 3, "optim.final_statistics": "normals"})
    with pytest.raises(StoppedError, match="estimated anew"):
        Trainer(config, should_stop=stop).run_epoch()
