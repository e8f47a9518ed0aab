"""Data roots with empty image files: enough for listing, nothing is decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

MakeRoot = Callable[[Mapping[str, Mapping[str, int]]], Path]


def write_root(root: Path, sets: Mapping[str, Mapping[str, int]]) -> Path:
    """Folder of a data set or category -> anomaly class -> number of images; 6 + 4 normal images each."""
    root.mkdir()
    for place, classes in sets.items():
        for folder, count in {
            "train/good": 6,
            "test/good": 4,
            **{f"test/{k}": n for k, n in classes.items()},
        }.items():
            (root / place / folder).mkdir(parents=True)
            for number in range(count):
                (root / place / folder / f"{number:03d}.png").touch()
    return root


@pytest.fixture
def make_root(tmp_path: Path) -> MakeRoot:
    """As `write_root`, in the folder of the test."""
    return lambda sets: write_root(tmp_path / "data", sets)


@pytest.fixture(autouse=True)
def no_elpv_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the package with the ELPV images is installed must not matter to these tests."""
    monkeypatch.setattr("sctune.reproduce.cells.elpv_installed", lambda: False)


CARPET = {"color": 12, "cut": 12, "hole": 12, "metal_contamination": 12, "thread": 12}


@pytest.fixture
def carpet(make_root: MakeRoot) -> Path:
    return make_root({"mvtec/carpet": CARPET})
