"""`sctune monitor`: a change that is certain and large is an alarm, nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from sctune.deploy.calibration import Calibration
from sctune.deploy.model import Model, load_model_folder
from sctune.errors import ConfigError, DataError
from sctune.metrics.threshold import Threshold, conformal_threshold
from sctune.serve.inputs import list_inputs
from sctune.serve.models import with_threshold
from sctune.serve.monitor import ALPHA, EFFECT, drifts, holm, monitor, monitor_lines, sizes
from sctune.serve.predict import predict_to_file
from tests.conftest import Command
from tests.models import noise_png, small_config, write_small_model


def calibrated(model: Model, count: int, rate: float = 0.01, seed: int = 0) -> Model:
    """The model as if it had been calibrated on `count` images with these distributions."""
    draws = np.random.default_rng(seed)
    columns = {
        "scores": draws.normal(0, 1, count),
        "brightness": draws.normal(120, 10, count),
        "contrast": draws.normal(30, 3, count),
    }
    made = Calibration(
        "numbers", **{name: tuple(values.tolist()) for name, values in columns.items()}, width=(80.0,) * count,
        height=(60.0,) * count,
    )  # fmt: skip
    parts = replace(model.parts, calibration=made, threshold=conformal_threshold(made.scores, rate))
    return Model(model.method, model.config, parts)


def rows(count: int, seed: int = 1, size: tuple[int, int] = (80, 60), **shifts: float) -> list[dict[str, Any]]:
    """Rows as of `predict`; shifts in standard deviations."""
    draws = np.random.default_rng(seed)
    score = draws.normal(shifts.get("score", 0), 1, count)
    brightness = draws.normal(120 + 10 * shifts.get("brightness", 0), 10, count)
    contrast = draws.normal(30 + 3 * shifts.get("contrast", 0), 3, count)
    return [
        {"path": f"{n}.png", "score": s, "brightness": b, "contrast": c, "width": size[0], "height": size[1]}
        for n, (s, b, c) in enumerate(zip(score.tolist(), brightness.tolist(), contrast.tolist(), strict=True))
    ]


def test_holm_by_hand() -> None:
    # 3 * .01, 2 * .02, 1 * .5, in the order given; a later one is never below an earlier one
    assert holm([0.5, 0.01, 0.02]) == [0.5, 0.03, 0.04]
    assert holm([0.03, 0.02, 0.021]) == pytest.approx([0.06, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_drift_is_certain_and_large() -> None:
    draws = np.random.default_rng(0)
    known = {"score": draws.normal(0, 1, 2000).tolist()}

    def of(values: np.ndarray) -> Any:
        return drifts({"score": values.tolist()}, known)[0]

    certain_and_small = of(draws.normal(0.15, 1, 20_000))
    assert certain_and_small.p < 1e-4 and certain_and_small.distance < EFFECT and not certain_and_small.alarm
    large_and_uncertain = of(draws.normal(0.8, 1, 4))
    assert large_and_uncertain.distance > EFFECT and large_and_uncertain.p > ALPHA and not large_and_uncertain.alarm
    both = of(draws.normal(1, 1, 100))
    assert both.alarm and both.shift == pytest.approx(1, abs=0.3)
    # a shift by half a standard deviation is the limit
    assert 2 * stats.norm.cdf(0.25) - 1 == pytest.approx(EFFECT, abs=0.005)


def test_the_same_source_seldom_alarms(model: Model) -> None:
    quiet = [monitor(calibrated(model, 170, seed=seed), rows(200, seed + 1000)).alarm for seed in range(100)]
    assert sum(quiet) <= 5


@pytest.mark.parametrize("name", ["score", "brightness", "contrast"])
def test_each_change_is_named(model: Model, name: str) -> None:
    found = monitor(calibrated(model, 170), rows(200, **{name: 1.5}))
    assert [drift.name for drift in found.drifts if drift.alarm] == [name]
    assert found.alarm and not found.sizes.alarm
    assert any(line.startswith(f"!! {name}: distance") for line in monitor_lines(found))
    advice = found.to_dict()["advice"]
    assert any("look at the images first" in line for line in advice) == (name != "score")
    assert any("highest scores" in line for line in advice) == (name == "score")


def test_the_alarm_rate_against_what_the_threshold_promises(model: Model) -> None:
    watched = calibrated(model, 170, rate=0.05)
    assert watched.threshold is not None and watched.threshold.bound is not None
    image = rows(100)
    for row in image:
        row["score"] = float(np.clip(row["score"], -2, watched.threshold.value))
    for count, alarm in ((int(100 * watched.threshold.bound), False), (25, True)):
        for row in image[:count]:
            row["score"] = watched.threshold.value + 0.01
        found = monitor(watched, image)
        assert found.alarm_rate is not None and found.alarm_rate.above.count == count
        assert found.alarm_rate.promised == watched.threshold.bound
        low = stats.beta.ppf(0.025, count, 101 - count)
        assert found.alarm_rate.above.low == pytest.approx(low)
        assert found.alarm_rate.alarm is alarm is bool(low > watched.threshold.bound)


def test_a_given_threshold_promises_what_the_calibration_had(model: Model) -> None:
    watched = with_threshold(calibrated(model, 170), Threshold(1.0, "given"))
    assert watched.parts.calibration is not None
    had = sum(score > 1 for score in watched.parts.calibration.scores)
    found = monitor(watched, rows(200)).alarm_rate
    assert found is not None and not found.alarm
    assert found.promised == pytest.approx(stats.beta.ppf(0.975, had + 1, 170 - had))
    bare = Model(model.method, model.config, replace(watched.parts, threshold=None))
    assert monitor(bare, rows(200)).alarm_rate is None


def test_sizes() -> None:
    usual = [(80, 60)] * 100
    assert not sizes([(80, 60)] * 50, usual).alarm
    turned = sizes([(80, 60)] * 30 + [(60, 80)] * 20, usual)
    assert turned.alarm and turned.most == (("60 x 80", 20),) and turned.new.count == 20
    assert not sizes([(80, 60)] * 49 + [(60, 80)], usual).alarm, "one image is no change"
    # where every image has a size of its own, new ones do too
    assert not sizes([(n, 7) for n in range(50)], [(n, 8) for n in range(100)]).alarm


def test_rows_without_a_score_are_counted(model: Model) -> None:
    some = rows(100)
    some[3]["score"] = None
    found = monitor(calibrated(model, 170), some)
    assert (found.images, found.failed) == (99, 1)
    assert any("without a score, and left out: 1" in line for line in monitor_lines(found))
    with pytest.raises(DataError, match="none of 1 images has a score"):
        monitor(model, [some[3]])
    some[5]["contrast"] = None
    with pytest.raises(DataError, match=r"5\.png has a score and no contrast"):
        monitor(model, some)


def test_a_model_without_calibration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keeps no calibration images"):
        monitor(load_model_folder(write_small_model(tmp_path, calibrated=0)), rows(10))


def test_the_command_on_a_folder_and_on_its_table(
    model: Model, model_folder: Path, tmp_path: Path, command: Command
) -> None:
    same, darker = tmp_path / "same", tmp_path / "darker"
    for number in range(60):
        for folder, share in ((same, 1.0), (darker, 0.6)):
            folder.mkdir(exist_ok=True)
            (folder / f"{number:02d}.png").write_bytes(noise_png(5000 + number))
            if share < 1:
                with Image.open(folder / f"{number:02d}.png") as image:
                    image.point(lambda value: int(value * 0.6)).save(folder / f"{number:02d}.png")
    code, out, _ = command("monitor", same, "--model", model_folder)
    assert (code, out.splitlines()[-1][:9]) == (0, "no alarm:")
    code, out, error = command("monitor", darker, "--model", model_folder, "--json")
    document = json.loads(out)
    assert (code, document["alarm"], error) == (1, True, "")
    assert {one["name"]: one["alarm"] for one in document["drifts"]}["brightness"]
    table = tmp_path / "darker.csv"
    predict_to_file(model, list_inputs([str(darker)]), table)
    code, out, _ = command("monitor", table, "--model", model_folder, "--json")
    assert code == 1 and json.loads(out) == document
    other = write_small_model(tmp_path / "other", small_config(seed=3))
    code, out, error = command("monitor", table, "--model", other)
    assert (code, out) == (2, "") and "holds scores of another model" in error
    assert command("monitor", tmp_path / "none.csv", "--model", model_folder)[0] == 2
