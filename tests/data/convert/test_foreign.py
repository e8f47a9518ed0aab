"""A data set of another package, as docs/extending.md shows it: prepared and verified by the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sctune.cli import app
from sctune.data.convert import known_sets, prepare, verify
from sctune.data.convert.registry import GROUP, SETS, raw_set
from sctune.errors import ConfigError, DataError
from tests.data.convert.conftest import noise, save
from tests.plugins import documented, write_package


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for folder, count in (("intact", 8), ("broken", 3)):
        for number in range(count):
            save(tmp_path / "raw" / folder / f"{folder}{number}.png", noise(f"{folder}{number}", 9, 9, 3))
    return tmp_path / "raw"


def test_a_set_of_another_package_is_prepared(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {GROUP: {"tiles": "tiles_set:TILES"}}
    monkeypatch.syspath_prepend(str(write_package(tmp_path / "site", "tiles_set", documented("A converter"), points)))
    assert [one.name for one in known_sets()] == [*(one.name for one in SETS), "tiles"]
    prepare("tiles", raw, tmp_path / "out")
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert [name for name in made if name.startswith("test/crack/")] == [f"test/crack/broken{n}.png" for n in range(3)]
    assert len([name for name in made if "/good/" in name]) == 8
    assert verify(tmp_path / "out").problems == ()
    assert "Tiles of our line" in CliRunner().invoke(app, ["data", "list"], env={"COLUMNS": "200"}).output
    with pytest.raises(DataError, match="unknown data set 'tile'; did you mean 'tiles'"):
        raw_set("tile")


def test_something_else_than_a_set_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {GROUP: {"tiles": "no_set:TILES"}}
    monkeypatch.syspath_prepend(str(write_package(tmp_path / "site", "no_set", "TILES = 3\n", points)))
    with pytest.raises(ConfigError, match=r"entry point 'tiles' of group sctune.converters gives a int; it must be"):
        known_sets()
