"""Files and folders that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sctune.errors import StudyError
from sctune.files import check_writable, whole_file, whole_folder


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyError), whole_file(path) as staged:
        staged.write_text("half")
        raise KeyError
    assert path.read_text() == "before"
    with whole_file(path) as staged:
        staged.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_a_folder_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "new"
    with pytest.raises(KeyError), whole_folder(folder) as staged:
        (staged / "a").write_text("half")
        raise KeyError
    assert not list(folder.parent.iterdir())
    with whole_folder(folder) as staged:
        (staged / "a").write_text("whole")
    assert (folder / "a").read_text() == "whole" and list(folder.parent.iterdir()) == [folder]
    with pytest.raises(OSError), whole_folder(folder) as staged:
        (staged / "a").write_text("other")
    assert (folder / "a").read_text() == "whole" and list(folder.parent.iterdir()) == [folder]


def test_where_no_file_can_be_made_is_told(tmp_path: Path) -> None:
    check_writable(tmp_path / "none" / "yet")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"--study-root: .*file is no folder that can be written to"):
        check_writable(tmp_path / "file" / "below", "--study-root", StudyError)
