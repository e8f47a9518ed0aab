"""`sctune reproduce` itself on a tiny MVTec AD: trained, scored, written, gone on with after a crash."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from sctune.metrics.ties import with_ties

# as `sctune` calls it, without the other commands
COMMAND = """
import sys, typer
from sctune.cli.reproduce import reproduce
from sctune.errors import SctuneError
app = typer.Typer()
app.command()(reproduce)
try:
    sys.exit(app(standalone_mode=False))
except SctuneError as problem:
    print(problem, file=sys.stderr)
    sys.exit(problem.exit_code)
"""
DEFECTS = ("color", "cut", "hole", "metal_contamination", "thread")
FAST = ("--profile", "smoke", "--set", "model.weights=random", "--seeds", "42,43", "--set", "runtime.device=cpu")


def make_category(folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    for part, count in {"train/good": 16, "test/good": 8, **{f"test/{kind}": 4 for kind in DEFECTS}}.items():
        (folder / part).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(90, 130, (48, 48, 3))
            if "good" not in part:
                y, x = random.integers(4, 28, 2)
                pixels[y : y + 14, x : x + 14] = 250
            Image.fromarray(pixels.astype(np.uint8)).save(folder / part / f"{number:03d}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Carpet; Grid with an image that cannot be decoded."""
    root = tmp_path_factory.mktemp("reproduce") / "data"
    make_category(root / "mvtec" / "carpet", 1)
    make_category(root / "mvtec" / "grid", 2)
    (root / "mvtec" / "grid" / "train" / "good" / "003.png").write_bytes(b"not an image")
    return root


class Runs:
    """One home with its studies and its results."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root, self.home, self.out = root, home, home / "out"
        home.mkdir()

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", COMMAND, *words, *FAST, "--data-root", str(self.root)]
        return subprocess.Popen(
            [*command, "--out", str(self.out), "--json"],
            env={**os.environ, "SCTUNE_HOME": str(self.home), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str) -> tuple[dict[str, Any], str]:
        """The JSON document and the messages."""
        with self.start(*words) as process:
            out, messages = process.communicate(timeout=280)
        assert process.returncode == 0, messages
        return json.loads(out), messages

    def table(self) -> list[dict[str, str]]:
        with (self.out / "table.csv").open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))


TABLE1 = ("table1", "--category", "carpet", "--category", "grid", "--n-anomalies", "1")
METHODS = ("--method", "saliencycut", "--method", "devnet", "--set", "budget.epochs=2")


@pytest.fixture(scope="module")
def done(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Runs, dict[str, Any], str]:
    runs = Runs(root, tmp_path_factory.mktemp("homes") / "whole")
    return runs, *runs.run(*TABLE1, *METHODS)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_numbers_come_from_the_stored_scores(done: tuple[Runs, dict[str, Any], str]) -> None:
    runs, document, messages = done
    (study,) = [name for name in document["studies"] if "carpet" in name]
    files = sorted((runs.out / "scores" / study).iterdir())
    assert [file.name for file in files] == [
        f"{method}--carpet-seed{seed}.csv" for method in ("devnet", "saliencycut") for seed in (42, 43)
    ]
    for method in ("devnet", "saliencycut"):
        values = []
        for file in files:
            if file.name.startswith(method):
                rows = list(csv.DictReader(file.open(encoding="utf-8")))
                # one of the twenty anomalies is trained on, all else is tested
                assert len(rows) == 8 + 20 - 1
                labels = [int(row["label"]) for row in rows]
                # those of random weights may differ by rounding alone
                values.append(roc_auc_score(labels, with_ties(np.array([float(row["score"]) for row in rows]))))
        (row,) = [row for row in runs.table() if (row["row"], row["column"]) == ("Carpet", method)]
        assert float(row["auroc"]) == pytest.approx(np.mean(values), abs=1e-12)
        assert float(row["std_trials"]) == pytest.approx(np.std(values), abs=1e-12)
        assert float(row["ci_low"]) <= float(row["auroc"]) <= float(row["ci_high"])
        assert (row["seeds"], row["profile"]) == ("2", "smoke")
        assert float(row["difference"]) == pytest.approx(float(row["auroc"]) - float(row["paper_auroc"]))
    assert "selection by test" in messages and "MVTec AD Carpet n=1, DevNet, seed 43: AUROC" in messages
    assert {path.name for path in runs.out.iterdir()} == {"scores", "spaces", "table.csv", "table.md", "table.png"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_study_that_cannot_run_is_a_gap(done: tuple[Runs, dict[str, Any], str]) -> None:
    runs, document, _ = done
    (gap,) = document["missing"]
    assert gap["cells"] == ["MVTec AD Grid n=1 DevNet", "MVTec AD Grid n=1 SaliencyCut"]
    assert "grid/train/good/003.png" in gap["reason"]
    (row,) = [row for row in runs.table() if (row["row"], row["column"]) == ("Grid", "devnet")]
    assert (row["auroc"], row["paper_auroc"]) == ("", "0.891")
    (mean,) = [row for row in runs.table() if (row["row"], row["column"]) == ("MVTec AD", "devnet")]
    assert (mean["note"], mean["paper_auroc"]) == ("partial: 1 of 15 rows", "")
    assert "003.png" in (runs.out / "table.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_command_repeats_nothing(done: tuple[Runs, dict[str, Any], str]) -> None:
    runs, document, _ = done
    (study,) = [name for name in document["studies"] if "carpet" in name]
    manifest = runs.home / "studies" / study / "study.json"
    before = {path: path.stat().st_mtime_ns for path in [manifest, *(runs.out / "scores").glob("*/*")]}
    table = (runs.out / "table.csv").read_bytes()
    (runs.out / "table.csv").unlink()
    again, messages = runs.run(*TABLE1, *METHODS)
    assert f"study {study} is complete" in messages and "scored" not in messages
    assert again["results"] == document["results"]
    assert (runs.out / "table.csv").read_bytes() == table
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_to_the_same_numbers(
    done: tuple[Runs, dict[str, Any], str], root: Path, tmp_path: Path
) -> None:
    _, document, _ = done
    (study,) = [name for name in document["studies"] if "carpet" in name]
    runs = Runs(root, tmp_path / "killed")
    with runs.start(*TABLE1, *METHODS, "--max-concurrent", "1") as process:
        try:
            # the first trial has ended, the second one has not
            end, checkpoints = time.monotonic() + 200, runs.home / "studies" / study / "trials" / "00000"
            while not list(checkpoints.glob("*/checkpoint.json")):
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.05)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    again, messages = runs.run(*TABLE1, *METHODS, "--max-concurrent", "1")
    assert f"study {study}: going on" in messages
    assert again["results"] == document["results"]
    launches = json.loads((runs.home / "studies" / study / "study.json").read_text())["launches"]
    assert len(launches) == 2
