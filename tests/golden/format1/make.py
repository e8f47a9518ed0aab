"""Makes the files beside it with the first published version of each format.

Run it with the code of commit 882237f, which all of them come from, and never again with a later one:
    PYTHONPATH=<that checkout> python make.py <new folder>
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from sctune.search.manifest import DataSpec, SchedulerSpec, SelectionSpec, StudyManifest
from sctune.search.searcher import StudySearcher
from sctune.tracking.journal import Journal

from sctune.config import Task, TrialConfig, load_profile
from sctune.data.images import ImageCache
from sctune.data.manifest import FileRecord, Manifest, Options
from sctune.report import OBJECTIVE, EpochReport
from sctune.search.space import load_space
from sctune.search.study import Study
from sctune.tracking.callback import StudyFacts, TrackingCallback
from sctune.trial.checkpoint import TrialStore

EPOCHS = 6
CURVES = {0: [0.5, 0.6, 0.7, 0.75, 0.8, 0.85], 1: [0.4], 2: [], 3: [0.6, 0.65]}
"""Trial -> values: 0 is COMPLETE, 1 PRUNED, 2 FAIL, 3 still RUNNING."""


class Events(list):
    """The sink of a callback that keeps the events."""

    put = list.append


def report(epoch: int, value: float) -> dict[str, object]:
    metrics = {OBJECTIVE: value, "loss": 1.0 - value, "seconds": 0.5}
    return EpochReport(epoch, EPOCHS, metrics, {"seed42": [0.1, 0.9]}).to_dict()


def manifest(folder: Path) -> StudyManifest:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({"parameters": {"augment.threshold": {"type": "float", "low": 0.1, "high": 0.9}}}))
    space = load_space(file, load_profile("cpu"))
    return StudyManifest(
        study_id="0123456789abcdef0123456789abcdef",
        name="first",
        created="2026-11-24T09:00:00+00:00",
        space=space.to_dict(),
        profile="cpu",
        config=space.base.model_dump(),
        tasks=[Task(source="/data/stripes", seed=42)],
        sampler="random",
        scheduler=SchedulerSpec(name="asha"),
        trials=8,
        selection=SelectionSpec(mode="extra", reason="asked for"),
        splits={"seed42": "0" * 64},
        data=DataSpec(name="stripes", digest="1" * 64),
        storage_path="/data/studies/first",
        tracking_uri="sqlite:////data/mlflow.db",
        versions={"sctune": "0.1.0"},
    )


def make_study(folder: Path) -> None:
    study = Study.create(folder / "studies", manifest(folder))
    (folder / "space.yaml").unlink()
    events = Events()
    facts = StudyFacts(study.manifest.study_id, "first", {"seed": 42}, "1" * 64, None, {"sctune": "0.1.0"}, 42, ["t"])
    tracking = TrackingCallback(events, facts)
    study.add_launch("2026-11-24T09:00:01+00:00")
    tracking.on_study_start()
    searcher = StudySearcher(study.manifest, study.manifest.build_space(), study.record, [tracking])
    for number, values in CURVES.items():
        searcher.suggest(f"ray-{number}")
        for epoch, value in enumerate(values, 1):
            searcher.on_trial_result(f"ray-{number}", report(epoch, value))
    for number in (0, 1):
        searcher.on_trial_complete(f"ray-{number}", report(len(CURVES[number]), CURVES[number][-1]))
    failure = {"kind": "DataError", "message": "a.png cannot be decoded", "traceback": "Traceback ..."}
    searcher.on_trial_complete("ray-2", {"failure": failure})
    study.record.close()
    study.end_launch("2026-11-24T09:01:01+00:00", "stopped")
    journal = Journal(study.folder / "tracking.jsonl")
    journal.append(events)
    journal.mark_delivered(5)
    journal.close()
    with study.lock():
        # as kill -9 leaves it
        text = (study.folder / "driver.json").read_text()
    (study.folder / "driver.json").write_text(text)
    tensors = {"model/w": torch.arange(4, dtype=torch.float32), "optim/0/step": torch.tensor(2.0)}
    meta = {"format_version": 1, "epoch": 2, "config": TrialConfig().model_dump(), "task": {}, "split": "0" * 64}
    TrialStore(str(study.folder), 3).save(2, 1, {"seed42": (tensors, meta)}, report(2, 0.65))


def make_data(folder: Path) -> None:
    """A prepared folder of two images, and the cache of them."""
    prepared = folder / "prepared"
    for path in ("train/good/000.png", "test/spot/000.png"):
        (prepared / path).parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), len(path), np.uint8)).save(prepared / path)
    record = FileRecord.model_validate(
        {"path": "train/good/000.png", "source": "a.png", "sha256": "2" * 64, "class": "good", "split": "train"}
    )
    made = Manifest(
        data_set="elpv",
        title="Stripes",
        source="/raw",
        created="2026-11-24T09:00:00+00:00",
        licence="CC0",
        attribution="",
        page="https://example.org",
        options=Options(),
        counts={"train/good": 1, "test/spot": 1},
        files=(record,),
    )
    (prepared / "manifest.json").write_text(made.to_json())
    ImageCache(folder / "cache").array(prepared, ["train/good/000.png", "test/spot/000.png"], 8)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    make_study(target)
    make_data(target)
    (target / "config.yaml").write_text(yaml.safe_dump(load_profile("smoke").model_dump(), sort_keys=False))
