"""Which cells a table has, and which the folders at hand allow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sctune.errors import ConfigError
from sctune.reproduce.cells import Asked, Block, Cell, match, table_blocks
from sctune.reproduce.paper import paper_table


def blocks_of(table: str, root: Path, **asked: Any) -> tuple[Block, ...]:
    return table_blocks(paper_table(table), Asked(**asked), root)


def all_cells(blocks: tuple[Block, ...]) -> list[Cell]:
    return [cell for block in blocks for cell in block.cells]


def test_names_match_whatever_their_writing() -> None:
    folders = ["metal_contamination", "Metal", "drill-hole", "Class1", "Class10"]
    assert match("Drill_Hole", folders) == "drill-hole"
    assert match("metal", folders) == "Metal"
    assert match("class 1", folders) == "Class1"
    assert match("class2", folders) is None


def test_without_data_every_cell_says_how_to_get_them(make_root: Any) -> None:
    blocks = blocks_of("table1", make_root({}))
    assert [len(block.cells) for block in blocks] == [30, 2, 2, 2, 2, 2]
    for cell in all_cells(blocks):
        assert cell.place is None
        assert cell.reason is not None and "`sctune data list` says how to get it" in cell.reason


def test_general_setting_takes_what_is_there(make_root: Any) -> None:
    root = make_root({"mvtec/carpet": {"cut": 12}, "mvtec/Metal-Nut": {"bent": 8, "flip": 4}, "sdd": {"defect": 20}})
    blocks = blocks_of("table1", root)
    able = {(cell.row.label, cell.anomalies): cell for cell in all_cells(blocks) if cell.reason is None}
    assert able.keys() == {(row, n) for row in ("Carpet", "Metal_nut", "SDD") for n in (1, 10)}
    nut, sdd = able["Metal_nut", 1].place, able["SDD", 10].place
    assert nut is not None and (nut.source, nut.category, nut.name) == (
        str(root / "mvtec"),
        "Metal-Nut",
        "mvtec/Metal-Nut",
    )
    assert sdd is not None and (sdd.source, sdd.category, sdd.name) == (str(root / "sdd"), None, "sdd")
    missing = {cell.reason for cell in all_cells(blocks) if cell.reason is not None}
    assert f"{root / 'mvtec'} has no folder grid; `sctune data list` says how to get it" in missing
    assert f"ELPV is not in {root}; `sctune data list` says how to get it" in missing


def test_numbers_of_others_stand_beside_data_that_the_table_lacks(make_root: Any) -> None:
    root = make_root({"sdd/commutator": {"crack": 20}})
    (sdd,) = all_cells(blocks_of("table3", root, datasets=("sdd",)))
    assert {key: number.mean for key, number in sdd.row.numbers.items()} == {(0, "kdad"): 0.842}
    # the sole category of a folder is what is meant by it
    assert sdd.place is not None and (sdd.place.source, sdd.place.category) == (str(root / "sdd"), "commutator")
    (bottle,) = all_cells(blocks_of("table3", root, categories=("bottle",)))
    assert bottle.row.numbers == {}
    for kind in ("train/good", "test/good", "test/crack"):
        (root / "sdd/other" / kind).mkdir(parents=True)
        (root / "sdd/other" / kind / "0.png").touch()
    (several,) = all_cells(blocks_of("table3", root, datasets=("sdd",)))
    assert several.reason is not None and "choose one of commutator, other" in several.reason


@pytest.mark.parametrize(
    ("once", "twice"),
    [
        ({"categories": ("grid",)}, {"categories": ("grid", "Grid")}),
        ({"datasets": ("optical",)}, {"datasets": ("optical", "optical")}),
        ({"datasets": ("sdd",), "known_classes": ("a",)}, {"datasets": ("sdd",), "known_classes": ("a", "A")}),
    ],
)
def test_what_is_named_twice_is_there_once(make_root: Any, once: Any, twice: Any) -> None:
    root = make_root({"mvtec/grid": {"bent": 12}, "optical": {"defect": 20}})
    blocks = blocks_of("table2", root, **once, anomalies=(1,))
    assert len(all_cells(blocks)) == 1
    assert blocks_of("table2", root, **twice, anomalies=(1,)) == blocks


def test_too_few_anomalies_are_a_reason(make_root: Any) -> None:
    root = make_root({"sdd": {"defect": 10}, "mvtec/carpet": {"color": 12, "cut": 9, "hole": 1}})
    general = {cell.anomalies: cell.reason for cell in all_cells(blocks_of("table1", root, datasets=("sdd",)))}
    assert general == {1: None, 10: "sdd has 10 anomalies; 10 in training leave none to test on"}
    hard = {
        (cell.row.label, cell.anomalies): cell.reason
        for cell in all_cells(blocks_of("table2", root, categories=("carpet",)))
    }
    assert hard["Color", 1] is hard["Color", 10] is hard["Cut", 1] is hard["Hole", 1] is None
    assert hard["Cut", 10] == "mvtec/carpet has 9 images of cut, 10 are to be trained on"
    assert hard["Metal", 1] == ("mvtec/carpet has no anomaly class metal_contamination, only color, cut, hole")


def test_hard_setting_needs_a_second_class(make_root: Any) -> None:
    root = make_root({"sdd": {"defect": 20}})
    (cell,) = all_cells(blocks_of("table4", root, datasets=("sdd",)))
    assert (cell.kind, cell.reason) == ("defect", "sdd has no other anomaly class than defect to test on")


def test_known_classes_are_found_in_the_folders(make_root: Any) -> None:
    root = make_root({"mvtec/carpet": {"Color": 10, "cut": 10, "hole": 10, "Metal-Contamination": 10, "thread": 10}})
    (block,) = blocks_of("table2", root, datasets=("mvtec",), categories=("carpet",), anomalies=(10,))
    assert [cell.kind for cell in block.cells] == ["Color", "cut", "hole", "Metal-Contamination", "thread"]
    assert block.whole and block.rows == 5
    for name in ("Metal", "metal contamination"):
        (one,) = blocks_of("table2", root, categories=("carpet",), known_classes=(name,), anomalies=(10,))
        assert [cell.kind for cell in one.cells] == ["Metal-Contamination"]
        assert not one.whole and one.rows == 5


def test_categories_narrow_a_table(carpet: Path) -> None:
    blocks = blocks_of("table1", carpet, datasets=("mvtec", "sdd"), categories=("carpet",))
    assert [(block.group.label, [cell.row.label for cell in block.cells]) for block in blocks] == [
        ("MVTec AD", ["Carpet", "Carpet"]),
        ("SDD", ["SDD", "SDD"]),
    ]
    assert not blocks[0].whole and blocks[1].whole


def test_a_data_set_that_the_papers_table_lacks(make_root: Any) -> None:
    """Table 4 on ELPV: the classes of Table 2, and no numbers of the paper."""
    root = make_root({"elpv": {"mono": 12, "poly": 12}})
    (block,) = blocks_of("table4", root, datasets=("elpv",))
    assert [(cell.row.label, cell.kind, cell.anomalies) for cell in block.cells] == [
        ("Mono", "mono", 10),
        ("Poly", "poly", 10),
    ]
    assert block.group.mean_label == "Mean" and not block.group.means
    assert all(not cell.row.numbers for cell in block.cells)
    (mono,) = blocks_of("table4", root, datasets=("elpv",), known_classes=("mono",))
    assert [cell.kind for cell in mono.cells] == ["mono"]


def test_a_category_that_the_papers_table_lacks_takes_the_classes_of_the_data(make_root: Any) -> None:
    root = make_root({"mvtec/leather": {"fold": 12, "glue": 12}})
    (block,) = blocks_of("table2", root, categories=("leather",), anomalies=(10,))
    assert [(cell.row.label, cell.reason) for cell in block.cells] == [("fold", None), ("glue", None)]
    (free,) = blocks_of("table3", root, categories=("leather",))
    assert free.cells[0].row.numbers, "leather is in the paper's Table 3"
    shutil.rmtree(root / "mvtec" / "leather")
    (gone,) = blocks_of("table2", root, categories=("leather",), anomalies=(10,))
    assert [(cell.row.label, cell.place) for cell in gone.cells] == [("each class", None)]


def test_a_folder_that_is_no_data_set_is_a_reason(make_root: Any) -> None:
    root = make_root({})
    (root / "sdd").mkdir()
    reasons = {cell.reason for cell in all_cells(blocks_of("table1", root, datasets=("sdd",)))}
    assert reasons == {f"{root / 'sdd'} holds no images; png, jpg, jpeg, jfif, bmp, tif, tiff, webp, npy are read"}


def test_elpv_comes_from_the_package(make_root: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("elpv_dataset")
    monkeypatch.setattr("sctune.reproduce.cells.elpv_installed", lambda: True)
    (block,) = blocks_of("table1", make_root({}), datasets=("elpv",), anomalies=(10,))
    place = block.cells[0].place
    assert place is not None and place.source == "elpv"
    assert [len(place.data.normals), len(place.data.anomalies)] == [1131 + 377, 715]


@pytest.mark.parametrize(
    ("table", "asked", "message"),
    [
        ("table1", {"datasets": ("elpf",)}, "unknown --dataset 'elpf'; did you mean 'elpv'"),
        ("table1", {"categories": ("carpt",)}, "--category 'carpt': mvtec has no such category; did you mean 'carpet'"),
        ("table1", {"datasets": ("sdd",), "categories": ("grid",)}, "--category 'grid': sdd has no categories"),
        ("table1", {"known_classes": ("cut",)}, "--known-class goes with the hard setting"),
        ("table2", {"known_classes": ("threat",)}, "--known-class 'threat': no such class.*did you mean 'Thread'"),
        ("table3", {"anomalies": (1,)}, "--n-anomalies: table3 is the anomaly-free setting"),
    ],
)
def test_names_that_do_not_exist_are_refused(carpet: Path, table: str, asked: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        blocks_of(table, carpet, **asked)
