"""Trials that fail do not end a search, where HOME takes no file either; a search of which all fail says why.

The grid of Fig. 7a does what it shows.
"""

from __future__ import annotations

import json
import shutil
import stat
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ONE = ["--max-concurrent", "1"]
"""None of these is about trials side by side, and a second worker takes as long to start as they all train."""
EXPLODING = "set: {optim.lr: 1.0, optim.clip_norm: 1.0e+30, budget.iterations: 40, budget.epochs: 1}\n"


@pytest.fixture(scope="module")
def homeless(sctune: Any, smoke: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A search with a trial that fails, in an environment whose HOME takes no file; its process when it has ended."""
    space = tmp_path_factory.mktemp("space") / "exploding.yaml"
    space.write_text(f"parameters: {{loss.margin: {{values: [5.0, 1.0e+38, 6.0]}}}}\n{EXPLODING}")
    stranger = type(sctune)(sctune.home)
    for name in ("RAY_AUTH_TOKEN", "MPLCONFIGDIR", "TORCH_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        stranger.env.pop(name, None)
    stranger.env["HOME"] = "/dev/null/home"
    return stranger(*smoke, *ONE, "--name", "nan", "--space", space, "--json")


def test_a_search_with_a_home_that_takes_nothing(sctune: Any, homeless: Any) -> None:
    assert "Matplotlib" not in homeless.stderr and "Traceback" not in homeless.stderr
    assert (sctune.study("nan") / "best" / "model.safetensors").is_file()
    token = sctune.home / "ray_auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    token.unlink()
    shutil.rmtree(sctune.home / "matplotlib", ignore_errors=True)


def test_a_loss_that_is_no_number_fails_its_trial_alone(
    sctune: Any, homeless: Any, runs_of: Any, tmp_path: Path
) -> None:
    from sctune.tracking.server import mlflow_client

    document = json.loads(homeless.stdout)
    trials = document["trials"]
    assert [trial["state"] for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert trials[1]["params"] == {"loss.margin": 1e38}
    assert trials[1]["failure"]["kind"] == "NonFiniteError"
    assert "epoch 1" in trials[1]["failure"]["message"]
    assert trials[1]["value"] is None
    assert document["best_trial"] in (0, 2)
    run = runs_of("nan")[1]
    assert (run.info.status, run.data.tags["state"]) == ("FAILED", "FAIL")
    client = mlflow_client(document["tracking_uri"])
    text = Path(client.download_artifacts(run.info.run_id, "failure.txt", str(tmp_path))).read_text()
    assert "Traceback" in text
    assert "NonFiniteError" in text
    assert "epoch 1" in sctune("status", "nan").stdout.replace("\n", " ")


def test_a_search_of_which_all_trials_fail_says_why(
    sctune: Any, smoke: list[str], runs_of: Any, tmp_path: Path
) -> None:
    space = tmp_path / "exploding.yaml"
    space.write_text(f"parameters: {{loss.margin: {{values: [1.0e+38, 2.0e+38]}}}}\n{EXPLODING}")
    done = sctune(*smoke, *ONE, "--name", "allfail", "--space", space, code=4)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("sctune: all 2 trials of allfail failed")
    assert "epoch 1" in line
    assert "sctune status allfail" in line
    assert {run.info.status for number, run in runs_of("allfail").items() if number is not None} == {"FAILED"}


@pytest.fixture(scope="module")
def damaged_folder(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small folder with two training images that cannot be read."""
    import shutil

    root = tmp_path_factory.mktemp("damaged") / "stripes"
    shutil.copytree(image_folder, root)
    for number in (3, 7):
        (root / "train" / "good" / f"{number:03d}.png").write_bytes(b"no image")
    return root


def test_fig7a_pastes_more_with_a_higher_threshold_and_counts_what_it_skips(
    sctune: Any, damaged_folder: Path, runs_of: Any, history: Any
) -> None:
    command = ["search", "--profile", "smoke", "--selection", "extra", "--data", damaged_folder, "--skip-corrupt"]
    short = ["--set", "budget.epochs=2"]
    done = sctune(*command, *ONE, *short, "--space", "fig7a", "--name", "fig7a", "--json")
    assert "skipped 2 corrupt images" in done.stderr
    assert "train/good/003.png" in done.stderr
    trials = json.loads(done.stdout)["trials"]
    # a grid is compared point by point: all of it, in order, and nothing stopped early
    assert [trial["params"]["augment.threshold"] for trial in trials] == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert {trial["state"] for trial in trials} == {"COMPLETE"}
    runs = runs_of("fig7a")
    shares = []
    for number in range(7):
        points = history(runs[number].info.run_id, "pasted_fraction")
        shares.append(sum(value for _, value in points) / len(points))
    assert all(0 < low < high < 1 for low, high in pairwise(shares)), shares
