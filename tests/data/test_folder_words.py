"""What names of folders say: good ones among the anomalies are refused, the layouts are found in any case."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sctune.data.catalog import folders_source, open_dataset
from sctune.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(hashlib.sha256(name.encode()).digest())


def refusal(source: str) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("word", ["good", "Good", "OK", "normal", "Pass", "good ", " ok"])
@pytest.mark.parametrize("below", ["nok", "nok/crack", "test/crack"])
def test_a_good_folder_among_anomalies_is_refused(tmp_path: Path, below: str, word: str) -> None:
    touch(tmp_path, "ok/1.png" if below.startswith("nok") else "train/good/1.png", f"{below}/{word}/2.png")
    text = refusal(str(tmp_path))
    assert text.startswith(f"{tmp_path}/{below}/{word}: a folder called {word!r} among the anomalies")
    assert "move it to the normal images, or rename it" in text


def test_two_plain_folders_are_looked_at_too(tmp_path: Path) -> None:
    touch(
        tmp_path, "train/1.png", "test/good/2.png", "test/crack/3.png", "bad/OK /4.png", "fine/5.png", "fine/nok/6.png"
    )
    for normal, anomalous, word in [
        ("train", "test", "'good' among the anomalies"),
        ("train", "bad", "'OK ' among the anomalies"),
        ("train", "test/good", "'good' among the anomalies"),
        ("fine", "test/crack", "'nok' among the normal images"),
        ("bad", "test/crack", "'bad' among the normal images"),
    ]:
        assert word in refusal(folders_source(tmp_path / normal, tmp_path / anomalous)), (normal, anomalous)
    assert open_dataset(folders_source(tmp_path / "train", tmp_path / "test" / "crack")).kinds == ["anomaly"]


@pytest.mark.parametrize("below", ["ok/bad", "train/good/Defect", "test/good/sub/NOK"])
def test_a_bad_folder_among_normals_is_refused(tmp_path: Path, below: str) -> None:
    touch(tmp_path, "ok/1.png" if below.startswith("ok") else "train/good/1.png", f"{below}/2.png")
    assert "among the normal images would be trained on as normal" in refusal(str(tmp_path))


@pytest.mark.parametrize("word", ["Good", "OK", "good ", "normal"])
def test_the_good_class_may_be_called_so(tmp_path: Path, word: str) -> None:
    touch(tmp_path, f"train/{word}/1.png", f"test/{word}/2.png", "test/crack/3.png")
    data = open_dataset(str(tmp_path))
    assert {(file.path, file.label, file.kind, file.split) for file in data.files} == {
        ("test/crack/3.png", 1, "crack", "test"),
        (f"test/{word}/2.png", 0, "good", "test"),
        (f"train/{word}/1.png", 0, "good", "train"),
    }
    assert any(f"'test/{word}' read as the class good" in note for note in data.notes)


def test_two_spellings_of_good_are_one_class(tmp_path: Path) -> None:
    touch(tmp_path, "train/good/1.png", "test/good/2.png", "test/Good/2.png", "test/crack/3.png")
    data = open_dataset(str(tmp_path))
    assert [file.path for file in data.normals] == ["test/Good/2.png", "test/good/2.png", "train/good/1.png"]
    assert any("'test/Good' and 'test/good' read as the class good" in note for note in data.notes)


@pytest.mark.parametrize(("good", "bad"), [("OK", "NOK"), ("Ok", "NG"), ("ok", "nok")])
def test_ok_and_nok_in_any_case(tmp_path: Path, good: str, bad: str) -> None:
    touch(tmp_path, f"line1/{good}/1.png", f"line1/{bad}/scratch/2.png", "line1/loose/3.png")
    data = open_dataset(str(tmp_path), category="line1")
    assert [(file.path, file.label, file.kind) for file in data.files] == sorted(
        [(f"line1/{good}/1.png"[6:], 0, "good"), (f"line1/{bad}/scratch/2.png"[6:], 1, "scratch")]
    )
    assert data.notes == (f"{tmp_path}/line1: not read, since no part of this layout: 'loose'",)


def test_plain_names_are_said_nothing_about(tmp_path: Path) -> None:
    touch(tmp_path, "train/good/1.png", "test/good/2.png", "test/crack/3.png", "test/bad/4.png")
    data = open_dataset(str(tmp_path))
    assert data.notes == () and data.kinds == ["bad", "crack"]


def test_elpv_beside_a_folder_of_that_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_dataset("elpv").notes == ()
    touch(tmp_path, "elpv/ok/1.png", "elpv/nok/2.png")
    (note,) = open_dataset("elpv").notes
    assert f"not the folder {tmp_path}/elpv; write ./elpv" in note
    assert len(open_dataset("./elpv").files) == 2
