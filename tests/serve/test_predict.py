"""`sctune predict`: every file a row, scores of the model to the last bit, an interruption loses nothing."""

from __future__ import annotations

import csv
import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image

from sctune.cli import main
from sctune.deploy.incoming import shown
from sctune.deploy.model import Model, load_model_folder, score_digest
from sctune.errors import ConfigError, DataError, NonFiniteError, SctuneError
from sctune.methods.deviation.patches import scoring_signs
from sctune.serve import inputs
from sctune.serve.inputs import AHEAD, CHUNK, list_inputs
from sctune.serve.models import opened
from sctune.serve.monitor import monitor, rows_of_table
from sctune.serve.predict import Progress, heat_map_name, predict_to_file, predicted_rows, refuse_inside
from sctune.serve.stopping import StoppedPredictionError, stop_asked
from sctune.serve.table import COLUMNS, read_identity, read_table, side_file
from tests.models import noise_png, small_config, write_small_model


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty images in two folders, the same names in both, and files that are none."""
    for number in range(40):
        place = tmp_path / "images" / ("left" if number % 2 else "right")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number // 2:02d}.png").write_bytes(noise_png(number, spot=number % 3 == 0))
    (tmp_path / "images/left/broken.png").write_bytes(noise_png(99)[:200])
    (tmp_path / "images/left/notes.txt").write_text("no image")
    (tmp_path / "images/left/.hidden.png").write_bytes(noise_png(98))
    return tmp_path / "images"


def expected_scores(model: Model, paths: list[str]) -> list[float]:
    """Each image by itself, backwards: nothing of how the command batches them."""
    return [float(model.score([model.prepare(Path(path)).pixels])[0]) for path in reversed(paths)][::-1]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_rows_are_those_of_the_model(model: Model, images: Path, tmp_path: Path, suffix: str) -> None:
    paths = list_inputs([str(images)])
    out = tmp_path / f"out{suffix}"
    done = predict_to_file(model, paths, out)
    rows = list(read_table(out))
    assert [row["path"] for row in rows] == sorted(map(str, images.glob("*/[!.]*.png")))
    good = [row for row in rows if row["error"] is None]
    assert [row["score"] for row in good] == expected_scores(model, [row["path"] for row in good])
    assert [row["label"] for row in good] == model.labels([row["score"] for row in good])
    assert model.threshold is not None and {row["threshold"] for row in rows} == {model.threshold.value}
    first = np.asarray(Image.open(good[0]["path"]).resize((64, 64), Image.Resampling.BILINEAR), np.float64)
    assert good[0]["brightness"] == pytest.approx(first.mean())
    assert good[0]["contrast"] == pytest.approx(first.std())
    assert (good[0]["width"], good[0]["height"]) == (80, 80)
    (bad,) = [row for row in rows if row["error"] is not None]
    assert bad["path"].endswith("left/broken.png") and "cannot be decoded" in bad["error"]
    assert [bad[name] for name in ("score", "label", "width")] == [None, None, None]
    anomalous = sum(row["label"] == "anomalous" for row in good)
    counts = done.counts
    assert (counts.rows, counts.failed, counts.anomalous, counts.normal) == (41, 1, anomalous, 40 - anomalous)
    assert 0 < anomalous < 40


def test_a_stopped_prediction_goes_on_to_the_same_file(model: Model, images: Path, tmp_path: Path) -> None:
    paths = list_inputs([str(images)])
    whole, parted = tmp_path / "whole.csv", tmp_path / "parted.csv"
    predict_to_file(model, paths, whole)
    seen: list[Progress] = []
    asked = Event()
    asked.set()
    for _ in range(2):
        with pytest.raises(StoppedPredictionError, match="the same command goes on") as caught:
            predict_to_file(model, paths, parted, told=seen.append, asked=asked)
        assert caught.value.exit_code == 3
    assert seen == [Progress(done, 41) for done in (0, CHUNK, CHUNK, 2 * CHUNK)]
    # a process that was killed while it wrote
    with parted.open("a") as stream:
        stream.write(f"{paths[2 * CHUNK]},0.5,norm")
    done = predict_to_file(model, paths, parted)
    assert (done.earlier, done.counts.rows, done.counts.failed) == (2 * CHUNK, 41, 1)
    assert parted.read_bytes() == whole.read_bytes()
    again = predict_to_file(model, paths, parted)
    assert again.earlier == 41 and parted.read_bytes() == whole.read_bytes()
    assert again.counts == done.counts


@pytest.mark.parametrize("kept", [0, 5, 30])
def test_a_file_cut_off_anywhere_is_mended(model: Model, images: Path, tmp_path: Path, kept: int) -> None:
    paths, out = list_inputs([str(images / "right")]), tmp_path / "out.csv"
    predict_to_file(model, paths, out)
    content = out.read_bytes()
    out.write_bytes(content[: kept * len(content) // 40])
    predict_to_file(model, paths, out)
    assert out.read_bytes() == content


def test_an_image_that_came_later_is_added_at_the_end(model: Model, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    predict_to_file(model, list_inputs([str(images / "right")]), out)
    (images / "right/-first.png").write_bytes(noise_png(7))
    predict_to_file(model, list_inputs([str(images / "right")]), out)
    rows = list(read_table(out))
    assert len(rows) == 21 and rows[-1]["path"].endswith("-first.png")


def test_a_file_of_something_else_is_refused(model: Model, model_folder: Path, images: Path, tmp_path: Path) -> None:
    paths, out = list_inputs([str(images / "right")]), tmp_path / "out.csv"
    predict_to_file(model, paths, out)
    before = out.read_bytes()
    other = load_model_folder(write_small_model(tmp_path / "other", small_config(seed=3)))
    with pytest.raises(DataError, match="scores of another model"):
        predict_to_file(other, paths, out)
    with pytest.raises(DataError, match=r"made with the threshold .*, not 0\.25; give another --out"):
        predict_to_file(opened(str(model_folder), threshold=0.25), paths, out)
    with pytest.raises(DataError, match="made without --heat-maps"):
        predict_to_file(model, paths, out, tmp_path / "maps")
    assert out.read_bytes() == before and read_identity(out) is not None
    side_file(out).write_text("{")
    with pytest.raises(DataError, match="cannot read"):
        predict_to_file(model, paths, out)
    side_file(out).unlink()
    with pytest.raises(DataError, match="nothing beside it says what model"):
        predict_to_file(model, paths, out)
    assert out.read_bytes() == before
    with pytest.raises(DataError, match=r"ends in \.csv or \.jsonl"):
        predict_to_file(model, paths, tmp_path / "out.txt")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_row_belongs_to_the_file_as_it_is_now(
    model: Model, images: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overwritten at the same size and time, overwritten, touched, mended, damaged, gone."""
    out, right = tmp_path / f"out{suffix}", images / "right"
    (right / "late.png").write_bytes(b"no image yet")
    paths = list_inputs([str(right)])
    predict_to_file(model, paths, out)
    before = {row["path"]: row for row in read_table(out)}
    for row in before.values():
        content = Path(row["path"]).read_bytes()
        assert (row["size"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert datetime.fromisoformat(row["mtime"][:26] + "Z").timestamp() == pytest.approx(
            os.stat(row["path"]).st_mtime
        )
    os.utime(right / "00.png")
    (right / "01.png").write_bytes(noise_png(70, spot=True))
    (right / "02.png").write_bytes(b"no image")
    (right / "late.png").write_bytes(noise_png(71))
    (right / "03.png").unlink()
    scored = list[str]()
    real = model.prepare
    monkeypatch.setattr(model, "prepare", lambda content: scored.append(hash_of(content)) or real(content))
    done = predict_to_file(model, list_inputs([str(right)]), out)
    changed = {str(right / name) for name in ("01.png", "02.png", "late.png")}
    assert set(scored) == {hash_of(Path(path).read_bytes()) for path in changed} and len(scored) == 3
    assert done.changes.changed == changed and done.changes.gone == (str(right / "03.png"),)
    assert list(done.changes.touched) == [str(right / "00.png")] and (done.earlier, done.counts.rows) == (18, 21)
    after = {row["path"]: row for row in read_table(out)}
    assert len(list(read_table(out))) == len(after) == 21, "each path has one row"
    whole = tmp_path / f"whole{suffix}"
    predict_to_file(model, list_inputs([str(right)]), whole)
    fresh = {row["path"]: row for row in read_table(whole)}
    assert {path: row for path, row in after.items() if path in fresh} == fresh
    assert after[str(right / "03.png")] == before[str(right / "03.png")]
    content = out.read_bytes()
    scored.clear()
    again = predict_to_file(model, list_inputs([str(right)]), out)
    assert not scored and out.read_bytes() == content and not again.changes.stale and not again.changes.touched


def test_the_summary_tells_what_changed_and_what_is_gone(
    model_folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(images.parent)
    words = ["sctune", "predict", "images/right", "--model", str(model_folder), "--out", "o.csv", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    told = []
    for number in range(3):
        if number == 1:
            (images / "right/01.png").write_bytes(noise_png(70))
            (images / "right/02.png").unlink()
        with pytest.raises(SystemExit) as caught:
            main()
        assert not caught.value.code
        told.append(capsys.readouterr())
    first, second, third = (json.loads(one.out) for one in told)
    assert [(one["earlier"], one["rescored"], one["gone"]) for one in (first, second, third)] == [
        (0, 0, 0), (19, 1, 1), (20, 0, 1)
    ]  # fmt: skip
    (line,) = told[1].err.splitlines()
    assert "19 rows were there already; 1 of files that have changed since were scored anew; " in line
    assert line.endswith("1 are of files that are gone (images/right/02.png) and stay")
    assert "anew" not in told[0].err + told[2].err


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_hash_decides_where_only_the_time_differs(model: Model, images: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "out.csv", images / "right/00.png"
    content = bytearray(path.read_bytes())
    predict_to_file(model, [str(path)], out)
    state = path.stat()
    content[-1] ^= 1  # of the same size, the last byte of the end mark
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not predict_to_file(model, [str(path)], out).changes.stale, "nothing says that it was written"
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert predict_to_file(model, [str(path)], out).changes.changed == {str(path)}
    (row,) = read_table(out)
    assert row["sha256"] == hash_of(bytes(content))


def test_a_table_of_an_earlier_sctune_goes_on(model: Model, images: Path, tmp_path: Path) -> None:
    """Its rows do not tell the content: those of files that are there are made anew, the others stay."""
    paths, out = list_inputs([str(images / "right")]), tmp_path / "out.csv"
    predict_to_file(model, paths, out)
    new, old = list(csv.DictReader(out.open())), COLUMNS[:9]
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, old, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(new)
        writer.writerow(new[0] | {"path": "/gone/a.png"})
    identity = json.loads(side_file(out).read_text())
    side_file(out).write_text(json.dumps(identity | {"columns": list(old)}))
    assert monitor(model, list(rows_of_table(model, out))).images == 21
    done = predict_to_file(model, paths, out)
    assert done.changes.unsure == set(paths) and done.changes.gone == ("/gone/a.png",)
    rows = list(csv.DictReader(out.open()))
    assert tuple(rows[0]) == COLUMNS and rows[0]["path"] == "/gone/a.png" and rows[1:] == new
    content = out.read_text().splitlines(keepends=True)
    out.write_text(content[0].replace(",note", ",note,later") + "".join(line[:-1] + ",\n" for line in content[1:]))
    with pytest.raises(DataError, match="has a column 'later', which this sctune does not write"):
        predict_to_file(model, paths, out)


def test_a_kill_at_any_write_leaves_a_whole_table(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while stale rows are taken out, or after: old rows or none for what changed, and the next run mends it."""
    out, right = tmp_path / "out.csv", images / "right"
    predict_to_file(model, list_inputs([str(right)]), out)
    before = out.read_bytes()
    (right / "05.png").write_bytes(noise_png(72, spot=True))

    class Killed(BaseException):
        """As the end of the process: nothing catches it."""

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "fsync", kill)
        predict_to_file(model, list_inputs([str(right)]), out)
    assert out.read_bytes() == before
    asked = Event()
    with pytest.raises(Killed):
        predict_to_file(model, list_inputs([str(right)]), out, told=kill, asked=asked)
    rows = list(read_table(out))
    assert len(rows) == 19 and str(right / "05.png") not in {row["path"] for row in rows}
    done = predict_to_file(model, list_inputs([str(right)]), out)
    assert (done.earlier, done.counts.rows) == (19, 20) and list(read_table(out))[-1]["path"].endswith("05.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.csv", "out.csv.model.json"]


def test_rows_of_what_could_not_be_read_are_tried_again(model: Model, images: Path, tmp_path: Path) -> None:
    out, link = tmp_path / "out.csv", images / "right/link.png"
    link.symlink_to(images / "nowhere.png")
    first = predict_to_file(model, [str(link)], out)
    content = out.read_bytes()
    assert first.counts.failed == 1 and predict_to_file(model, [str(link)], out).earlier == 1
    assert out.read_bytes() == content
    (images / "nowhere.png").write_bytes(noise_png(3))
    done = predict_to_file(model, [str(link)], out)
    assert done.counts.failed == 0 and done.changes.changed == {str(link)}


def test_notes_of_an_image_stand_in_its_row(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = model.prepare
    monkeypatch.setattr(model, "prepare", lambda content: replace(real(content), notes=("one, with comma", "two")))
    out = tmp_path / "out.csv"
    predict_to_file(model, [str(images / "right/00.png")], out)
    assert [row["note"] for row in read_table(out)] == ["one, with comma; two"]


def test_two_commands_do_not_write_one_file(model: Model, images: Path, tmp_path: Path) -> None:
    paths, out = list_inputs([str(images / "right")]), tmp_path / "out.csv"

    def second(_: Progress) -> None:
        with pytest.raises(DataError, match="another command is writing"):
            predict_to_file(model, paths, out)

    assert predict_to_file(model, paths, out, told=second).counts.rows == 20


def test_heat_maps_have_names_of_their_own(model: Model, images: Path, tmp_path: Path) -> None:
    scoring_signs.cache_clear()  # as in a new process, where a score is the first thing that is asked for
    out, maps = tmp_path / "out.csv", tmp_path / "maps"
    predict_to_file(model, list_inputs([str(images)]), out, maps)
    rows = list(read_table(out))
    assert tuple(rows[0]) == (*COLUMNS, "heat_map")
    names = [row["heat_map"] for row in rows if row["error"] is None]
    assert len(set(names)) == 40 and sorted(names) == sorted(path.name for path in maps.iterdir())
    for row in rows:
        assert row["heat_map"] == (heat_map_name(row["path"]) if row["error"] is None else None)
    plain, drawn = (np.asarray(Image.open(path), int) for path in (rows[0]["path"], maps / names[0]))
    assert drawn.shape == (64, 64, 3) and plain.std() > 0
    # only what is hot is coloured
    assert (np.ptp(drawn, axis=-1) > 20).any() and (np.ptp(drawn, axis=-1) < 20).any()


def test_long_and_odd_names(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [b'a\nb,".png', b"\xff\xfe.png", ("ü" * 120 + ".png").encode()]
    for name in names:
        Path(os.fsdecode(bytes(folder) + b"/" + name)).write_bytes(noise_png(1))
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to(folder / "nowhere.png")
    out = tmp_path / "out.csv"
    done = predict_to_file(model, list_inputs([str(folder)]), out, tmp_path / "maps")
    rows = {row["path"]: row for row in read_table(out)}
    assert (len(rows), done.counts.failed) == (5, 2)
    assert rows[f"{folder}/pipe.png"]["error"] == f"{folder}/pipe.png is no regular file"
    assert "No such file" in rows[f"{folder}/link.png"]["error"]
    assert rows[f'{folder}/a\\nb,".png']["score"] == rows[f"{folder}/\\udcff\\udcfe.png"]["score"]
    assert len(out.read_text().splitlines()) == 6, "a row is a line"
    assert predict_to_file(model, list_inputs([str(folder)]), out, tmp_path / "maps").earlier == 5


def test_inputs_are_listed_once_in_one_order(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = list_inputs([str(images)])
    assert list_inputs([str(images / "right"), f"{images}/left/", str(images / "right" / "03.png")]) == both
    monkeypatch.chdir(images)
    assert list_inputs(["right"])[0] == "right/00.png"
    assert list_inputs(["left/notes.txt"]) == ["left/notes.txt"], "a file that is named is tried"
    with pytest.raises(DataError, match="there is no file or folder nowhere"):
        list_inputs(["right", "nowhere"])
    (images / "empty").mkdir()
    with pytest.raises(DataError, match="no images in empty"):
        list_inputs(["empty"])
    assert shown("übung 1.png") == "übung 1.png"


def test_a_score_that_is_no_number_costs_only_its_own_row(
    model: Model, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real model gives such a score for no image, so the detector is made to."""
    paths = list_inputs([str(images / "right")])
    real, victim = model.method.score, model.prepare(Path(paths[4])).pixels

    def broken(batch: np.ndarray) -> np.ndarray:
        return np.where([(image == victim).all() for image in batch], np.nan, real(batch))

    monkeypatch.setattr(model.method, "score", broken)
    with pytest.raises(NonFiniteError):
        model.score([victim])
    rows = [row for chunk in predicted_rows(model, paths) for row in chunk]
    assert [number for number, row in enumerate(rows) if row["error"]] == [4]
    assert rows[4]["score"] is None and all(rows[number]["score"] is not None for number in range(20) if number != 4)


def test_memory_does_not_grow_with_the_number_of_images(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "one.png"
    picture.write_bytes(noise_png(1, side=16))
    monkeypatch.setattr(model.method, "score", lambda batch: batch.mean(axis=(1, 2, 3)))  # seconds, not minutes
    alive = []

    def walk(count: int) -> int:
        tracemalloc.start()
        for number, _ in enumerate(predicted_rows(model, (str(picture) for _ in range(count)))):
            if number == count // CHUNK - 1:
                gc.collect()
                alive.append(sum(type(one) is inputs.Prepared for one in gc.get_objects()))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    walk(64)
    small, large = walk(500), walk(3000)
    assert large < small + 400_000, f"{small} bytes for 500 images, {large} for 3000"
    assert 0 < max(alive) <= AHEAD + 2 * CHUNK


def test_overrides_of_the_threshold(model: Model, model_folder: Path, tmp_path: Path) -> None:
    assert model.parts.calibration is not None
    looser = opened(str(model_folder), wanted=0.5)
    assert looser.threshold is not None and looser.threshold.wanted == 0.5
    assert sum(score > looser.threshold.value for score in model.parts.calibration.scores) == 19, "the 21st of 40"
    assert opened(str(model_folder), threshold=0.5).labels([0.4, 0.5, 0.6]) == ["normal", "normal", "anomalous"]
    assert score_digest(looser) == score_digest(model)
    bare = write_small_model(tmp_path / "bare", calibrated=0)
    with pytest.raises(ConfigError, match="keeps no calibration images"):
        opened(str(bare), wanted=0.1)
    with pytest.raises(ConfigError, match="give one of them"):
        opened(str(model_folder), threshold=1.0, wanted=0.1)
    with pytest.raises(ConfigError, match="finite"):
        opened(str(model_folder), threshold=float("nan"))


def test_without_a_threshold_there_are_scores_only(tmp_path: Path, images: Path) -> None:
    bare = load_model_folder(write_small_model(tmp_path / "bare", calibrated=0))
    out = tmp_path / "out.csv"
    predict_to_file(bare, list_inputs([str(images / "right")]), out)
    rows = list(read_table(out))
    assert {(row["label"], row["threshold"]) for row in rows} == {(None, None)}
    assert all(isinstance(row["score"], float) for row in rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,0\n", "has no column 'score'"),
        ("", "has no column 'path'"),
        ("path,score\na.png,high\n", "line 2: no row"),
        ("path,score\na.png,1\nb.png\n", "line 3: no row"),
        ("path,score\na.png,1,2\n", "line 2: no row"),
        ("path,score\n,1\n", "line 2: no row"),
    ],
)
def test_a_table_of_something_else_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_table(tmp_path / "t.csv"))


def run(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sctune", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=100)


def test_the_command_writes_csv_to_stdout(
    model: Model,
    model_folder: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(images)
    monkeypatch.setattr(sys, "argv", ["sctune", "predict", "left", "--model", str(model_folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["path"] for row in rows][:2] == ["left/00.png", "left/01.png"]
    paths = [str(images / row["path"]) for row in rows if not row["error"]]
    assert [float(row["score"]) for row in rows if not row["error"]] == expected_scores(model, paths)
    assert "21 images in stdout" in err and "1 failed" in err


@pytest.mark.slow
def test_a_signal_ends_the_command_and_the_same_one_goes_on(model: Model, model_folder: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "many", tmp_path / "out.csv"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.png").write_bytes(noise_png(number))
    for number in range(30, 1200):
        (folder / f"{number:04d}.png").symlink_to(folder / f"{number % 30:02d}.png")
    words = ["predict", str(folder), "--model", str(model_folder), "--out", str(out), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sctune", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not (out.exists() and out.read_bytes().count(b"\n") > CHUNK) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 3, messages
    assert "of 1200 images; the same command goes on behind the rows in" in messages
    assert "Traceback" not in messages
    there = list(read_table(out))
    assert 0 < len(there) < 1200
    for path in list(folder.iterdir()):
        if path.is_symlink() and int(path.stem) >= len(there) + 40:
            path.unlink()
    again = run(*words)
    assert again.returncode == 0, again.stderr
    rows = list(read_table(out))
    assert rows[: len(there)] == there and [row["path"] for row in rows] == list_inputs([str(folder)])
    assert json.loads(again.stdout)["earlier"] == len(there)
    assert [row["score"] for row in rows[:30]] == expected_scores(model, [row["path"] for row in rows[:30]])


def test_a_second_signal_ends_it_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_asked() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert issubclass(StoppedPredictionError, SctuneError)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["images", "--out", "o.txt"], "ends in .csv or .jsonl"),
        (["nowhere"], "there is no file or folder nowhere"),
        (["images", "--json"], "--json without --out"),
        (
            ["images", "--out", "o.csv", "--heat-maps", "images/maps"],
            "whose images are scored; give a folder elsewhere",
        ),
        (["images", "--threshold", "1", "--false-alarm-rate", "0.1"], "give one of them"),
        (["images", "--out", "images/left/00.png/o.csv"], "cannot write"),
    ],
)
def test_bad_input_is_one_line(
    model_folder: Path,
    images: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(images.parent)
    monkeypatch.setattr(sys, "argv", ["sctune", "predict", *words, "--model", str(model_folder)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_heat_maps_below_the_images_are_refused_by_any_way_there(tmp_path: Path) -> None:
    """The next run would score them as images."""
    images, link = tmp_path / "images", tmp_path / "link"
    images.mkdir()
    link.symlink_to(images)
    for folder in (images / "maps", link / "maps", tmp_path / "other" / ".." / "images" / "maps"):
        with pytest.raises(ConfigError, match=r"--heat-maps .* lies in"):
            refuse_inside(folder, [str(images)])
        with pytest.raises(ConfigError, match=r"--heat-maps .* lies in"):
            refuse_inside(folder, [str(link)])
    refuse_inside(tmp_path / "maps", [str(images)])
