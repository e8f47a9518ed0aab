"""Names that every later command would take for an option are refused before anything is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sctune.cli import main


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["search", "--data", "IMAGES", "--name=-x"], "--name '-x'"),
        # asked before the study is looked for
        (["deploy", "s", "--name=-x"], "--name '-x'"),
        (["deploy", "s", "--name="], "--name ''"),
        (["deploy", "s", "--alias=-x"], "--alias '-x'"),
    ],
)
def test_a_name_with_a_leading_dash(
    words: list[str],
    named: str,
    sctune_home: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["sctune", *[str(image_folder) if one == "IMAGES" else one for one in words]])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"sctune: {named}: ") and err.endswith("; change it\n")
    assert not list(sctune_home.glob("studies/*")) and not list(sctune_home.glob("*.db"))
