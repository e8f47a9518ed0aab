"""Conformance packs: a right consumer of the ONNX file agrees, each wrong one is told and named."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sctune.cli import main
from sctune.cli.serve import export
from sctune.deploy.conformance.check import Checked, check_consumer
from sctune.deploy.conformance.pack import Pack, read_pack, write_pack
from sctune.deploy.conformance.raw import raw_files
from sctune.deploy.export import export_model
from sctune.deploy.model import Model, load_model_folder, score_digest
from sctune.deploy.parity import TOLERANCE
from sctune.errors import ConfigError, DataError
from tests.models import small_config, write_small_model

CONSUMER = '''
"""Reads images with Pillow and scores them with onnxruntime; knows nothing of sctune. argv: fault, folder, files."""
import json, sys
from pathlib import Path
import numpy as np, onnxruntime
from PIL import Image, ImageOps

fault, facts, folder, *files = sys.argv[1:]
facts = json.loads(facts)
size, folder = facts["size"], Path(folder)
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

def read(path):
    if path.endswith(".npy"):
        picture = Image.fromarray(np.load(path))
    else:
        picture = Image.open(path)
        if facts["upright"] != (fault == "orientation"):
            picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        deep = np.asarray(picture).astype(np.int64)
        told = np.load(folder / "deep.npy")[deep]
        picture = Image.fromarray((deep & 255).astype(np.uint8) if fault == "low byte" else told)
    pixels = np.asarray(picture.convert("RGB"))
    return pixels[..., ::-1] if fault == "BGR" else pixels

def resized(pixels):
    if fault == "no antialias":
        rows, columns = (np.clip((np.arange(size) + .5) * side / size - .5, 0, side - 1) for side in pixels.shape[:2])
        top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
        down, right = np.minimum(top + 1, pixels.shape[0] - 1), np.minimum(left + 1, pixels.shape[1] - 1)
        y, x = (rows - top)[:, None, None], (columns - left)[None, :, None]
        upper = pixels[top][:, left] * (1 - x) + pixels[top][:, right] * x
        lower = pixels[down][:, left] * (1 - x) + pixels[down][:, right] * x
        return (upper * (1 - y) + lower * y).round().astype(np.uint8)
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((size, size), Image.Resampling.BILINEAR))

print("a library says hello")
for path in files:
    name = Path(path).name
    if name in facts["refused"]:
        print(json.dumps({"file": path, "error": "not for me"}))
        continue
    pixels = resized(read(path))
    (score,) = session.run(None, {"images": pixels[None]})[0]
    line = {"file": path, "score": float(score)}
    if facts["pixels"]:
        line["pixels"] = str(folder / f"{fault}-{name}.npy")
        np.save(line["pixels"], pixels)
    print(json.dumps(line))
'''
NAMED = {
    "no antialias": "resized without antialiasing",
    "BGR": "the colours in the order BGR",
    "low byte": "16-bit values cut to their low byte",
    "orientation": "EXIF orientation",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    return load_model_folder(write_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def pack(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return write_pack(model, tmp_path_factory.mktemp("packs") / "pack")


@pytest.fixture(scope="module")
def place(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported file, the consumer, and what the model makes of each value of 16 bits."""
    folder = tmp_path_factory.mktemp("consumer")
    export_model(model, "onnx", folder / "model.onnx")
    (folder / "consumer.py").write_text(CONSUMER)
    known = np.zeros(2**16, np.uint8)
    for start in range(0, 2**16, 64 * 64):
        stream = BytesIO()
        np.save(stream, np.arange(start, start + 64 * 64, dtype=np.uint16).reshape(64, 64))
        with suppress(DataError):  # beyond the range of a model that refuses it
            known[start : start + 64 * 64] = model.prepare(stream.getvalue()).pixels[..., 0].ravel()
    np.save(folder / "deep.npy", known)
    return folder


def command(place: Path, pack: Pack, fault: str, with_pixels: bool = True) -> str:
    """The consumer's command line; whether images are turned, how 16 bits are read, what is refused: as the model."""
    refused = [case.file for case in pack.cases if case.refused is not None]
    facts = {"size": 64, "upright": is_upright(pack), "refused": refused, "pixels": with_pixels}
    return shlex.join([sys.executable, str(place / "consumer.py"), fault, json.dumps(facts), str(place)])


def is_upright(pack: Pack) -> bool:
    """Whether the model turns images by their EXIF orientation."""
    (case,) = [case for case in pack.cases if case.file == "turned.jpg"]
    with Image.open(pack.raw(case)) as stored:
        assert stored.getexif()[0x0112] == 6
        return (case.width, case.height) == ImageOps.exif_transpose(stored).size


def test_a_pack_holds_what_the_model_makes_of_its_files(model: Model, pack: Pack) -> None:
    about = json.loads((pack.folder / "pack.json").read_text())
    assert about["format_version"] == 1 and about["model"]["digest"] == score_digest(model)
    assert model.threshold is not None and about["threshold"] == model.threshold.value
    assert about["reading"]["resize"] == "stretch" and "antialias" in json.dumps(about["reading"])
    taken = [case for case in pack.cases if case.refused is None]
    assert len(taken) >= len(pack.cases) - 3 and {case.label for case in taken} == {"normal", "anomalous"}
    for case in taken:
        content = pack.raw(case).read_bytes()
        image = model.prepare(content)
        np.testing.assert_array_equal(pack.pixels(case), image.pixels)
        assert case.score == model.score([image.pixels])[0] and case.label == model.labels(case.score)[0]
        assert (case.width, case.height) == (image.width, image.height)
        assert all(wrong.name for wrong in case.wrong) and case.score_tolerance == TOLERANCE * max(1, abs(case.score))
    sizes = {(case.width, case.height) for case in taken}
    assert (1, 1) in sizes and (64, 64) in sizes and any(width == 1 < height for width, height in sizes if width)
    kinds = {}
    for raw in raw_files(64):
        if not raw.name.endswith(".npy"):
            with Image.open(BytesIO(raw.content)) as picture:
                kinds[raw.name] = picture.mode
    assert {"RGB", "L", "1", "P", "RGBA", "I;16"} <= set(kinds.values())
    again = raw_files(64)
    assert [one.content for one in again] == [pack.folder.joinpath("raw", one.name).read_bytes() for one in again]


@pytest.mark.parametrize("with_pixels", [True, False])
def test_a_right_consumer_agrees(pack: Pack, place: Path, with_pixels: bool) -> None:
    found = check_consumer(pack, command(place, pack, "none", with_pixels))
    assert found.differing == [] and len(found.rows) == len(pack.cases)
    assert found.line() == f"it agrees with the model on all {len(pack.cases)} files"
    for row in found.rows:
        if row.expected is not None:
            assert row.difference is not None and row.difference <= TOLERANCE
            assert row.pixels == (0 if with_pixels else None)


@pytest.mark.parametrize("with_pixels", [True, False])
@pytest.mark.parametrize("fault", NAMED)
def test_a_wrong_consumer_is_named(pack: Pack, place: Path, fault: str, with_pixels: bool) -> None:
    found = check_consumer(pack, command(place, pack, fault, with_pixels))
    wrong = {row.file: row for row in found.differing}
    expected = {
        "no antialias": "colour.png", "BGR": "colour.png", "low byte": "grey16.png", "orientation": "turned.jpg"
    }[fault]  # fmt: skip
    assert NAMED[fault] in (wrong[expected].hint or ""), wrong
    assert NAMED[fault] in found.line().split("looks like: ")[1].split(" (")[0]
    if with_pixels:
        assert (wrong[expected].pixels or 0) > 1 and (wrong[expected].share or 0) > 0.01
    right = {"no antialias": "colour.bmp", "BGR": "grey.png", "low byte": "colour.png", "orientation": "colour.jpg"}
    assert right[fault] not in wrong


def test_what_else_a_consumer_may_get_wrong(model: Model, pack: Pack, tmp_path: Path) -> None:
    """By hand: an answer left out, an error, no number, a label, pixels of another form or none."""
    np.save(tmp_path / "float.npy", np.zeros((3, 64, 64), np.float32))
    lines: dict[str, dict[str, Any]] = {
        case.file: {"file": case.file, "score": case.score, "label": case.label} for case in pack.cases
    }
    lines = {name: line for name, line in lines.items() if line["score"] is not None}
    lines.pop("dot.png")
    others = set(lines) - {"line.png", "grey.png", "wide.png", "colour.png"}
    far = max(others, key=lambda name: abs(lines[name]["score"] - (pack.threshold or 0)))
    lines["line.png"] = {"file": "line.png", "error": "too narrow\nfor me"}
    lines["grey.png"]["score"] = float("nan")
    lines[far]["label"] = "normal" if lines[far]["label"] == "anomalous" else "anomalous"
    lines["wide.png"]["pixels"] = str(tmp_path / "float.npy")
    lines["colour.png"]["pixels"] = str(tmp_path / "none.npy")
    (tmp_path / "lines").write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    found = check_consumer(pack, f"{sys.executable} -c 'print(open(\"{tmp_path}/lines\").read())'")
    faults = {row.file: row.fault for row in found.differing}
    assert (
        faults.pop("dot.png") == "it gave no answer" and faults.pop("line.png") == "it gave an error: too narrow for me"
    )
    assert (
        faults.pop("grey.png") == "score" and faults.pop(far) == f"label {lines[far]['label']}, not {flip(lines[far])}"
    )
    assert faults.pop("wide.png") == "pixels float32 [3, 64, 64], not uint8 [64, 64, 3]"
    assert (faults.pop("colour.png") or "").startswith("pixels that cannot be read")
    refused = {case.file for case in pack.cases if case.refused is not None}
    assert set(faults) <= refused


def flip(line: dict[str, Any]) -> str:
    return "normal" if line["label"] == "anomalous" else "anomalous"


def test_one_score_for_all_looks_like_nothing(pack: Pack) -> None:
    """By chance some files have about that score by some wrong pipeline; no pipeline explains them together."""
    words = (
        f"{sys.executable} -c 'import json, sys; [print(json.dumps(dict(file=f, score=0.4))) for f in sys.argv[1:]]'"
    )
    found = check_consumer(pack, words)
    apart = [row for row in found.rows if row.expected is not None and abs(row.expected - 0.4) > TOLERANCE]
    assert [row.file for row in found.differing if row.expected is not None] == [row.file for row in apart]
    assert "looks like" not in found.line()


def test_pixels_that_are_off_by_rounding_are_no_fault(model: Model, pack: Pack, tmp_path: Path) -> None:
    def check(change: int) -> list[str | None]:
        lines = []
        for case in pack.cases:
            if case.refused is None:
                pixels = np.clip(pack.pixels(case).astype(int) + change, 0, 255).astype(np.uint8)
                np.save(tmp_path / f"{case.file}.npy", pixels)
                line = {"score": float(model.score([pixels])[0]), "pixels": str(tmp_path / f"{case.file}.npy")}
                lines.append(json.dumps({"file": case.file, **line}))
        (tmp_path / "lines").write_text("\n".join(lines))
        found = check_consumer(pack, f"{sys.executable} -c 'print(open(\"{tmp_path}/lines\").read())'")
        return [row.fault for row in found.rows if row.expected is not None]

    assert set(check(1)) == {None}
    faults = check(3)
    assert None not in faults and all("pixels" in (fault or "") for fault in faults)


def test_a_file_that_the_model_refuses_is_to_be_refused(model: Model, tmp_path: Path) -> None:
    class Strict(Model):
        def prepare(self, source: Path | bytes) -> Any:
            if isinstance(source, bytes) and source.startswith(b"\x93NUMPY"):
                raise DataError("the image: no arrays")
            return super().prepare(source)

    pack = write_pack(Strict(model.method, model.config, model.parts), tmp_path / "pack")
    case = next(case for case in pack.cases if case.file == "colour.npy")
    assert case.refused == "colour.npy: no arrays" and case.score is None
    lines = [{"file": one.file, "score": one.score or 0.0} for one in pack.cases]
    (tmp_path / "lines").write_text("\n".join(map(json.dumps, lines)))
    found = check_consumer(pack, f"{sys.executable} -c 'print(open(\"{tmp_path}/lines\").read())'")
    fault = {row.file: row.fault for row in found.differing}["colour.npy"]
    assert fault == "the model refuses it: colour.npy: no arrays"


@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_other_rules_of_resizing(tmp_path: Path, resize: str) -> None:
    """The pack's own reading of its rules is the model's, so that what is misread is told from what is resized."""
    model = load_model_folder(write_small_model(tmp_path / "model", small_config(data__resize=resize), calibrated=0))
    pack = write_pack(model, tmp_path / "pack")
    wide = next(case for case in pack.cases if case.file == "wide.png")
    names = {wrong.name for wrong in wide.wrong}
    assert "resized without regard to the aspect" in names and len(pack.cases) == len(raw_files(64))
    assert ("padded" in names) == (resize == "crop") and wide.label is None and pack.threshold is None


@pytest.mark.parametrize(
    ("consumer", "message"),
    [
        ("/nowhere/consumer", "cannot be run: No such file"),
        (f"{sys.executable} -c 'import sys; sys.exit(\"no model here\")'", "ended with exit code 1: no model here"),
        (f"{sys.executable} -c 'print(1)'", "printed no line of JSON: the command gets the files as arguments"),
        (f"{sys.executable} -c 'print(\"{{}}\")'", "printed '{}': the command gets the files"),
        ("'", "cannot be run: No closing quotation"),
        ("http://127.0.0.1:9/predict", "does not answer"),
    ],
)
def test_a_consumer_that_cannot_be_asked_is_one_line(
    pack: Pack, consumer: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sctune", "export", "--pack", str(pack.folder), "--check", consumer])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_command_says_where_it_differs(
    pack: Pack,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sctune", "export", "--pack", str(pack.folder), *words])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), capsys.readouterr().out

    assert run("--check", command(place, pack, "none"))[0] == 0
    code, text = run("--check", command(place, pack, "BGR"))
    assert code == 1 and "looks like: the colours in the order BGR" in text
    row = next(line for line in text.splitlines() if " colour.png " in line)
    assert "pixels, score" in row and "the colours in the order BGR" in row and "% of them" in row
    code, text = run("--json", "--check", command(place, pack, "BGR"))
    document = json.loads(text)["check"]
    assert code == 1 and document["agrees"] is False and len(document["files"]) == len(pack.cases)


def test_every_type_of_file_that_is_read_is_in_the_pack(pack: Pack) -> None:
    kinds = {case.file.rpartition(".")[2] for case in pack.cases}
    assert kinds == {"png", "jpg", "jfif", "bmp", "tif", "webp", "npy"}
    kept = {case.file: case for case in pack.cases}
    with Image.open(pack.raw(kept["colour.webp"])) as picture, Image.open(pack.raw(kept["colour.jfif"])) as other:
        assert (picture.format, other.format) == ("WEBP", "JPEG")
    assert (kept["colour.webp"].pixel_tolerance, kept["colour.jfif"].pixel_tolerance) == (1, 2)
    assert {wrong.name for wrong in kept["colour.webp"].wrong} > {NAMED["BGR"], NAMED["no antialias"]}


def test_what_the_command_refuses(model: Model, pack: Pack, tmp_path: Path) -> None:
    folder = str(tmp_path)
    for words, message in (
        ({}, "name a model"),
        ({"pack": tmp_path}, "name a model"),
        ({"out": tmp_path / "a.onnx"}, "name the model that is written"),
        ({"model": folder}, "nothing is asked for"),
        ({"model": folder, "pack": tmp_path / "p", "images": tmp_path}, "they are for comparing the file that --out"),
        ({"model": folder, "pack": pack.folder, "check": "x"}, "leave .* out to check with it"),
        ({"pack": tmp_path / "none", "check": "x"}, "holds no whole pack"),
        ({"pack": pack.folder, "check": "x", "token_file": tmp_path / "t"}, "a token is for a server; give its"),
        ({"model": folder, "out": tmp_path / "a", "token_file": tmp_path / "t"}, "a token is for a server"),
        ({"pack": pack.folder, "check": "http://x", "token_file": tmp_path / "t"}, "cannot read --token-file"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(**words)
    with pytest.raises(ConfigError, match="is not empty; give a new folder"):
        write_pack(model, pack.folder)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_damaged_pack_is_named(pack: Pack, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(pack.folder, copy)
    (copy / "raw/grey.png").write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"grey\.png is not the file"):
        read_pack(copy)
    manifest = copy / "pack.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ConfigError, match="format_version 2, this sctune reads 1; update it"):
        read_pack(copy)
    manifest.write_text("{}")
    with pytest.raises(ConfigError, match="cannot read the pack"):
        read_pack(copy)


def test_the_outcome_without_hints() -> None:
    assert Checked("x", ()).line() == "it agrees with the model on all 0 files"
