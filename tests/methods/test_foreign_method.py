"""A whole method from another package: found by its entry point, trained, searched, resumed, deployed, exported."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sctune.cli import app
from sctune.config import TrialConfig, load_profile, method_entries, method_entry, methods, register
from sctune.deploy.build import model_parts
from sctune.deploy.export import export_model, run_exported
from sctune.deploy.locate import open_model
from sctune.deploy.parity import TOLERANCE
from sctune.errors import CheckpointError, ConfigError, SpaceError
from sctune.methods.named import method_names, method_values
from sctune.search.plan.options import SearchOptions
from sctune.search.run.driver import resume, run_search
from sctune.search.space.definition import load_space
from sctune.train.heatmap import heat_maps
from sctune.train.rescore import score_variants
from sctune.train.trainer import Trainer
from tests.builders import make_space

TINT = Path(__file__).parent / "tint"


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package `tint`, as pip would install it; gone after the test."""
    site = tmp_path / "site"
    shutil.copytree(TINT, site / "tint", ignore=shutil.ignore_patterns("__pycache__"))
    info = site / "tint-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tint\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sctune.methods]\ntint = tint:ENTRY\n")
    # Ray's workers find it as they find sctune
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    monkeypatch.syspath_prepend(str(site))
    yield
    methods.forget("tint")


@pytest.fixture
def tinted(tiny: TrialConfig) -> TrialConfig:
    return tiny.override({"method.name": "tint", "budget.epochs": 3})


def test_it_is_known_by_its_name(tiny: TrialConfig, tinted: TrialConfig) -> None:
    assert {"deviation", "tint"} <= {entry.name for entry in method_entries()}
    assert "tint" in method_names()
    assert load_profile("cpu").override(method_values("tint", "cpu")).method.name == "tint"
    assert tinted.override({"method.power": 3.0}).flat()["method.power"] == 3.0
    assert TrialConfig.load(json.loads(json.dumps(tinted.document()))) == tinted
    assert "method" not in tiny.model_dump(exclude_defaults=True)


def test_a_broken_package_says_so_and_takes_no_other_with_it(tmp_path: Path, tiny: TrialConfig) -> None:
    (tmp_path / "site/tint/__init__.py").write_text("import nothing_of_this_name\n")
    methods.forget("tint")
    sys.modules.pop("tint", None)
    assert [entry.name for entry in method_entries()][:1] == ["deviation"] and "tint" not in method_names()
    with pytest.raises(
        ConfigError, match=r"'tint' of package tint cannot be loaded \(ModuleNotFoundError: No module named"
    ) as caught:
        tiny.override({"method.name": "tint"})
    assert "\n" not in str(caught.value)


def test_a_method_of_this_process(tiny: TrialConfig) -> None:
    entry = method_entry("tint")
    register(replace(entry, name="own", settings=("general",), trains=False))
    try:
        own = tiny.override({"method.name": "own", "budget.epochs": 5})
        assert own.epochs == 1
        assert [report.epoch for report in Trainer(own).fit()] == [1]
        with pytest.raises(ConfigError, match=r"data\.setting=anomaly-free: method own cannot be trained in it"):
            own.override({"data.setting": "anomaly-free", "data.selection": "auto"})
    finally:
        methods.forget("own")


def test_what_belongs_to_another_method_is_reset_or_refused(tiny: TrialConfig, tinted: TrialConfig) -> None:
    assert tinted.model == TrialConfig().model != tiny.model
    powered = tinted.override({"method.power": 3.0})
    again = powered.override({"method.name": "deviation", "data.image_size": 448})
    assert "method.power" not in again.flat() and again.method == tiny.method
    for values, words in (
        (
            {"model.heads": "four_head"},
            r"model\.heads='four_head': method tint has no use for it; leave it out, or use",
        ),
        ({"method.power": 9.0}, r"method\.power=9\.0: input should be less than or equal to 4"),
        ({"method.name": "tints"}, r"method\.name='tints': no such method; did you mean 'tint'"),
        ({"method.powr": 2.0}, r"'method\.powr'; did you mean 'method\.power'"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            tinted.override(values)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"'method\.power' of method deviation"):
        tiny.override({"method.power": 2.0})


def test_a_space_draws_only_what_the_chosen_method_has(tmp_path: Path) -> None:
    space = make_space(
        tmp_path,
        parameters={
            "method.name": {"values": ["deviation", "tint"]},
            "model.top_k": {"values": [0.1, 0.2]},
            "method.power": {"values": [1.0, 2.0, 3.0]},
        },
    )
    points = list(space.points())
    assert [set(point) for point in points] == [{"method.name", "model.top_k"}] * 2 + [
        {"method.name", "method.power"}
    ] * 3
    assert [space.config(point).method.name for point in points] == ["deviation"] * 2 + ["tint"] * 3
    with pytest.raises(SpaceError, match="nothing is searched"):
        make_space(tmp_path, parameters={"model.top_k": {"values": [0.1, 0.2]}}, set={"method.name": "tint"})
    assert set(load_space("tint", load_profile("cpu")).by_name) == {"method.power"}


def test_it_trains_and_goes_on_from_a_checkpoint(tinted: TrialConfig) -> None:
    whole = [report.scores for report in Trainer(tinted).fit()]
    assert len(whole) == 3 and whole[0] != whole[2]
    first = Trainer(tinted)
    first.run_epoch()
    tensors, meta = first.state()
    later = Trainer(tinted)
    later.load_state(tensors, json.loads(json.dumps(meta)))
    assert [report.scores for report in later.fit()] == whole[1:]
    assert all(torch.equal(a, b) for a, b in zip(later.state()[0].values(), _last(tinted).values(), strict=True))
    with pytest.raises(CheckpointError, match="config differs"):
        Trainer(tinted.override({"method.power": 1.0})).load_state(tensors, meta)
    assert score_variants(tinted) == [{}]


def _last(config: TrialConfig) -> dict[str, torch.Tensor]:
    trainer = Trainer(config)
    list(trainer.fit())
    return trainer.state()[0]


def test_heat_maps_without_more_code(tinted: TrialConfig) -> None:
    trainer = Trainer(tinted)
    list(trainer.fit())
    images = trainer.selection.images[:3]
    for kind in ("gradient", "score"):
        maps = heat_maps(trainer.method, images, kind)  # type: ignore[arg-type]
        assert maps is not None and maps.shape == images.shape[:3] and np.isfinite(maps).all()
    assert model_parts(trainer, {}).threshold is not None


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_from_a_search_to_an_exported_model(image_folder: Path, tmp_path: Path) -> None:
    options = SearchOptions(
        space="tint",
        name="t",
        profile="smoke",
        data=str(image_folder),
        selection="extra",
        trials=1,
        max_concurrent=1,
        overrides={"budget.epochs": 2},
    )
    run_search(options)
    document = resume("t", more_trials=1).to_dict()
    assert [trial["state"] for trial in document["trials"]] == ["COMPLETE"] * 2
    assert {trial["params"]["method.power"] for trial in document["trials"]} == {1.0, 2.0}

    model = open_model("models:/t@candidate", document["tracking_uri"], "cpu")
    assert model.config.method.name == "tint" and model.threshold is not None
    pictures = sorted(map(str, image_folder.rglob("*.png")))[:5]
    pixels = np.stack([model.prepare(Path(path)).pixels for path in pictures])
    scores = model.score(pixels)
    assert np.ptp(scores) > 0
    out = tmp_path / "scores.csv"
    words = ["predict", *pictures, "--model", "models:/t@candidate", "--tracking-uri", document["tracking_uri"]]
    done = CliRunner().invoke(app, [*words, "--out", str(out), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert len(out.read_text().splitlines()) == len(pictures) + 1
    exported = export_model(model, "onnx", tmp_path / "tint.onnx", pixels)
    np.testing.assert_allclose(run_exported(exported.file, "onnx", pixels), scores, atol=TOLERANCE)
