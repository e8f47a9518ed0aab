"""Damaged and hostile checkpoints: one line, or what was written; nothing outside the folder is read, nothing run."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_tensors

from sctune.config import TrialConfig
from sctune.errors import CheckpointError
from sctune.report import OBJECTIVE, EpochReport
from sctune.train.trainer import Trainer
from sctune.trial.checkpoint import CheckpointName, TrialStore

REPORT = EpochReport(2, 3, {OBJECTIVE: 0.5, "seconds": 1.5}, {"task": [0.1, 0.2]}).to_dict()
TENSORS = {"model/w": torch.arange(12.0).reshape(3, 4), "optim/0/step": torch.tensor(3.0)}
META = {"format_version": 1, "epoch": 2, "config": {"seed": 1}, "split": "abc"}


Trained = tuple[Trainer, dict[str, Any], dict[str, Any]]


def saved(tmp_path: Path) -> tuple[TrialStore, Path]:
    store = TrialStore(str(tmp_path), 0)
    name = store.save(2, 1, {"task": (TENSORS, META)}, REPORT)
    return store, tmp_path / "trials/00000" / name.folder


def refused(store: TrialStore) -> str:
    with pytest.raises(CheckpointError) as caught:
        store.load(CheckpointName(2, 1))
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 1000
    assert store.load_latest() is None
    return text


def damage(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    place, length = rng.randrange(len(content)), rng.randint(1, 16)
    kind = rng.randrange(4)
    if kind == 0:
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del changed[place:]
    elif kind == 2:
        del changed[place : place + length]
    else:
        changed[place:place] = rng.randbytes(length)
    return bytes(changed)


def says_the_same(changed: bytes, content: bytes) -> bool:
    """A space more or less between two words of JSON is no damage."""
    try:
        return bool(changed == content or json.loads(changed) == json.loads(content))
    except ValueError:
        return False


def check_damage(tmp_path: Path, examples: range) -> None:
    store, folder = saved(tmp_path)
    written = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(written) == 2
    for seed in examples:
        for path, content in written.items():
            path.write_bytes(changed := damage(content, random.Random(seed)))
            if not says_the_same(changed, content):
                assert str(folder) in refused(store)
            path.write_bytes(content)
    assert store.load(CheckpointName(2, 1)).report == REPORT


def test_any_damage_is_noticed(tmp_path: Path) -> None:
    check_damage(tmp_path, range(150))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_damage_is_noticed_in_many_checkpoints(tmp_path: Path) -> None:
    start = random.SystemRandom().randrange(10**9)
    print("seeds from", start)
    check_damage(tmp_path, range(start, start + 10_000))


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda manifest: [manifest],
    "no tasks": lambda manifest: manifest | {"tasks": None},
    "tasks in a list": lambda manifest: manifest | {"tasks": list(manifest["tasks"].values())},
    "a newer format": lambda manifest: manifest | {"format_version": 2},
    "no format": lambda manifest: {**manifest, "format_version": None},
    "a format of nothing": lambda manifest: manifest | {"format_version": math.nan},
    "a format in words": lambda manifest: manifest | {"format_version": "1"},
    "another epoch": lambda manifest: manifest | {"epoch": 3},
    "an epoch of nothing": lambda manifest: manifest | {"epoch": math.nan},
    "half an epoch": lambda manifest: manifest | {"epoch": 2.5},
    "a report in words": lambda manifest: manifest | {"report": "none"},
    "a report without values": lambda manifest: manifest | {"report": {"epoch": 2}},
    "a report of another epoch": lambda manifest: manifest | {"report": REPORT | {"epoch": 1}},
    "a value that is none": lambda manifest: manifest | {"report": REPORT | {"metrics": {OBJECTIVE: math.nan}}},
    "a value in words": lambda manifest: manifest | {"report": REPORT | {"metrics": {OBJECTIVE: "high"}}},
    "scores in words": lambda manifest: manifest | {"report": REPORT | {"scores": {"task": "high"}}},
}
FILES = ["../../../secret", "/etc/passwd", "..", ".", "", "a/b", "a\0b", "a\nb", ".hidden", "x" * 5000, 3, None, ["a"]]


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """As somebody would who knows the format: without digests, which checkpoints of earlier versions lack too."""
    path = folder / "checkpoint.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    for row in manifest["tasks"].values():
        del row["sha256"]
    path.write_text(json.dumps(change(manifest)))


@pytest.mark.parametrize("case", MANIFESTS, ids=lambda case: case.replace(" ", "-"))
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, case: str) -> None:
    store, folder = saved(tmp_path)
    rewritten(folder, lambda manifest: manifest)
    assert store.load(CheckpointName(2, 1)).tasks["task"][1] == META
    rewritten_again = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(MANIFESTS[case](rewritten_again)))
    refused(store)


@pytest.mark.parametrize("name", FILES, ids=lambda name: repr(name)[:20].replace("/", "-"))
def test_a_file_outside_is_never_read(tmp_path: Path, name: Any) -> None:
    store, folder = saved(tmp_path)
    for secret in (tmp_path / "secret", tmp_path.parent / "secret"):
        secret.write_bytes(save_tensors({"model/w": torch.ones(1)}))
    rewritten(folder, lambda manifest: manifest | {"tasks": {"task": {"file": name, "meta": META}}})
    refused(store)
    (tmp_path.parent / "secret").unlink()


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, (2**63).to_bytes(8, "little"), (10**8 - 1).to_bytes(8, "little") + b"{}", b"[" * 100_000],
    ids=["empty", "short", "huge", "long", "deep"],
)
def test_headers_of_any_length(tmp_path: Path, content: bytes) -> None:
    store, folder = saved(tmp_path)
    rewritten(folder, lambda manifest: manifest)
    (folder / "task-0.safetensors").write_bytes(content)
    refused(store)
    shutil.rmtree(folder)
    store, folder = saved(tmp_path)
    (folder / "checkpoint.json").write_bytes(content)
    refused(store)


def test_folders_of_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    store, folder = saved(tmp_path)
    for name in (
        "epoch-9-attempt-01",
        f"epoch-{'9' * 200}-attempt-01",
        "epoch-0009-attempt-01x",
        "epoch-٠٠٠٩-attempt-01",
    ):
        shutil.copytree(folder, folder.parent / name)
    (folder.parent / "epoch-0008-attempt-01").mkdir()
    (folder.parent / "epoch-0007-attempt-01").symlink_to(folder.parent / "epoch-0007-attempt-01")
    assert store.names() == [CheckpointName(2, 1)]
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.report == REPORT


def without(tensors: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in tensors.items() if key != name}


@pytest.fixture(scope="module")
def trained(
    tiny: TrialConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trainer, dict[str, Any], dict[str, Any]]:
    trainer = Trainer(tiny, cache=tmp_path_factory.mktemp("cache"))
    trainer.run_epoch()
    tensors, meta = trainer.state()
    return trainer, {name: value.clone() for name, value in tensors.items()}, json.loads(json.dumps(meta))


def test_a_state_that_does_not_fit_is_refused(
    trained: Trained,
) -> None:
    trainer, tensors, meta = trained
    weight = next(name for name in tensors if name.startswith("model/") and tensors[name].ndim > 1)
    moment = next(name for name in tensors if name.endswith("exp_avg"))
    hostile: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (tensors | {weight: tensors[weight][:1]}, meta),
        (tensors | {weight: tensors[weight].double()}, meta),
        (tensors | {weight: tensors[weight].int()}, meta),
        (without(tensors, weight), meta),
        (tensors | {"model/more": torch.ones(1)}, meta),
        (tensors | {moment: torch.ones(1)}, meta),
        (without(tensors, moment), meta),
        (tensors | {"optim/99999/exp_avg": torch.ones(1)}, meta),
        (tensors | {"optim/x/exp_avg": torch.ones(1)}, meta),
        (tensors | {"optim/0": torch.ones(1)}, meta),
        (tensors | {"optim/0/__class__": torch.ones(1)}, meta),
        (tensors | {"../../x": torch.ones(1)}, meta),
        *((tensors, meta | {"epoch": epoch}) for epoch in (None, "1", 1.5, -1, 99, math.nan, True)),
        (tensors, meta | {"config": "x"}),
        (tensors, meta | {"config": {"runtime": []}}),
        (tensors, without(meta, "split")),
        (tensors, {}),
    ]
    for number, (given, about) in enumerate(hostile):
        with pytest.raises(CheckpointError) as caught:
            trainer.load_state(given, about)
        assert len(str(caught.value).splitlines()) == 1, number
    trainer.load_state(tensors, meta)
    after, again = trainer.state()
    assert all(torch.equal(after[name], tensors[name]) for name in tensors)
    assert again["epoch"] == 1
