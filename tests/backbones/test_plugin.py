"""A backbone of another package: found by its entry point, trained, and its weights checked like any other's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sctune.backbones.entry import BackboneEntry
from sctune.backbones.registry import SHIPPED, backbone_names, register
from sctune.config import TrialConfig
from sctune.errors import ConfigError

MODULE = """
from math import ceil
from pathlib import Path

from sctune.backbones.entry import BackboneEntry, Tap, by_stride, halves, load_whole
from sctune.backbones.sources import FileWeights


def build():
    from torch import nn

    return nn.Sequential(*(nn.Conv2d(3 if n == 0 else 8, 8, 3, stride=2, padding=1) for n in range(5)))


ENTRY = BackboneEntry(
    "five_convolutions",
    build=build,
    blocks=lambda net, taps: list(net),
    n_blocks=5,
    taps=by_stride(*(Tap(2 << n, 8, after=n + 1) for n in range(5))),
    rounding=halves(*[ceil] * 5),
    load=load_whole(),
    weights=FileWeights(Path(__file__).with_name("five.safetensors"), "five.safetensors of its authors"),
    cost=0.1,
)
OTHER = ENTRY
"""
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from sctune.config import TrialConfig
from sctune.backbones.registry import backbone_entry, backbone_names
from sctune.backbones.weights import resolve_weights
from sctune.files import file_sha256
from sctune.errors import SctuneError
from sctune.train.trainer import Trainer

assert "five_convolutions" in backbone_names()
config = TrialConfig.load(json.loads(sys.argv[1]))
try:
    resolve_weights("five_convolutions", "imagenet")
except SctuneError as problem:
    print(problem)
net = backbone_entry("five_convolutions").build()
save_file(net.state_dict(), backbone_entry("five_convolutions").weights.path)
trainer = Trainer(config)
state = trainer.method.detector.backbone.state_dict()
print(torch.equal(state["blocks.0.weight"], net[0].weight), trainer.method.detector.backbone.channels)
print(trainer.run_epoch().epoch)
try:
    config.override({"model.backbone": "another_name"})
except SctuneError as problem:
    print(problem)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    info = site / "five-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "five.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: five\nVersion: 1.0\n")
    lines = ["[sctune.backbones]", "five_convolutions = five:ENTRY", "another_name = five:OTHER"]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


def test_an_installed_package_adds_a_backbone(package: Path, tiny: TrialConfig, repository: Path) -> None:
    tree = tiny.model_dump()
    tree["model"] |= {"backbone": "five_convolutions", "taps": "stride8,middle", "freeze": 1, "weights": "imagenet"}
    import json
    import os

    paths = [str(package), str(repository), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(tree)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    missing, loaded, epoch, other = done.stdout.splitlines()
    assert missing == (
        f"five_convolutions has no weights here; put five.safetensors of its authors at {package / 'five.safetensors'}"
    )
    assert (loaded, epoch) == ("True 16", "1")
    assert "entry point 'another_name' of group sctune.backbones gives no BackboneEntry of that name" in other


def test_a_backbone_of_this_process(tiny: TrialConfig) -> None:
    from dataclasses import replace

    from sctune.backbones import registry

    entry: BackboneEntry = replace(SHIPPED["resnet18"], name="mine")
    with pytest.raises(ConfigError, match="unknown backbone 'mine'"):
        tiny.override({"model.backbone": "mine", "model.freeze": 0})
    register(entry)
    try:
        assert "mine" in backbone_names()
        assert tiny.override({"model.backbone": "mine", "model.freeze": 0}).model.backbone == "mine"
    finally:
        registry._registered.clear()
    with pytest.raises(ValueError, match="'resnet18' exists already"):
        register(SHIPPED["resnet18"])
