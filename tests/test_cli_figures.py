"""The commands `figures` and `augmentations`: their options, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from sctune.cli.figures import augmentations, figures
from sctune.errors import SctuneError

app = typer.Typer()
app.command()(figures)
app.command()(augmentations)


def run(*words: object) -> str:
    """Standard output; raises what the command raises."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("L"))


def test_all_augmentations_in_one_picture(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "kinds.png"
    small = ("augmentations", "--profile", "smoke", "--data", image_folder, "--count", 2, "--out", out)
    assert run(*small).strip() == str(out)
    everything = pixels(out)
    assert everything.std() > 30
    run(*small, "--kind", "cutmix", "--kind", "cutmix_pair")
    some = pixels(out)
    # one band instead of two; the picture before it is replaced
    assert some.std() > 30
    assert some.shape[0] < 0.7 * everything.shape[0]
    run(*small, "--kind", "saliencycut", "--set", "augment.threshold=0.9")
    most = pixels(out)
    run(*small, "--kind", "saliencycut", "--set", "augment.threshold=0.05")
    least = pixels(out)
    # the masks are whiter
    assert most.shape == least.shape
    assert most.mean() > least.mean() + 5
    assert [path.name for path in out.parent.iterdir()] == ["kinds.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("figures", "absent"), "no study 'absent'"),
        (("figures", "../absent"), "use letters"),
        (("figures", "any", "--out", "FILE"), "FILE is no folder that can be written to"),
        (("augmentations", "--out", "FILE/a.png"), "FILE is no folder that can be written to"),
        (("augmentations", "--out", "a.jpg"), "--out a.jpg: give a file name that ends in .png"),
        (("augmentations", "--kind", "cutmx"), "did you mean 'cutmix'"),
        (("augmentations", "--profile", "cpus"), "cpus"),
        (("augmentations", "--data", "FILE"), "FILE is a file, but no .csv"),
        (("augmentations", "--set", "augment.treshold=1"), "did you mean 'augment.threshold'"),
    ],
)
def test_bad_input_is_one_line_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SctuneError) as caught:
        run(*(word.replace("FILE", str(file)) for word in words))
    assert message.replace("FILE", str(file)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("words", [("--perplexity", "0"), ("--limit", "1"), ("--trial", "-1"), ("--nonsense",)])
def test_numbers_out_of_range_are_refused(words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, ["figures", "any", *words]).exit_code == 2
