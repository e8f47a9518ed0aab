"""Damaged manifests: one line that names the file, or a study; nothing else ever comes out of `Study.open`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from sctune.config import load_profile
from sctune.errors import SctuneError, StudyError
from sctune.search.space.definition import load_space
from sctune.search.study.study import MANIFEST, Study, list_studies
from tests.builders import make_manifest

VALUES = [None, True, -1, 0, 2**70, 1e400, float("nan"), "", "../x", "\x00", "é" * 300, [], [[]], {}, {"a": {"b": 1}}]
DEEP = '{"a":' * 30_000


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.create(tmp_path, make_manifest(load_space("threshold_patch", load_profile("cpu"), {})))


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(content)), rng.randint(1, 40)
    kind = rng.randrange(4)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + content[place + length :]
    if kind == 2:
        return content[:place] + rng.randbytes(length) + content[place:]
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def damage_tree(content: bytes, rng: random.Random) -> bytes:
    """One value of the document, however deep, is another one, gone, or there under another name."""
    tree = json.loads(content)
    place: Any = tree
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
            break
        place = place[key]
    change = rng.randrange(3)
    if change == 0:
        place[key] = deepcopy(rng.choice(VALUES))
    elif change == 1:
        del place[key]
    elif isinstance(place, dict):
        place[f"{key}x"] = place.pop(key)
    return json.dumps(tree).encode()


@pytest.mark.parametrize("damage", [damage_bytes, damage_tree])
@pytest.mark.parametrize("seed", [range(1), pytest.param(range(1, 20), marks=pytest.mark.slow)], ids=["few", "many"])
def test_a_damaged_manifest(seed: range, damage: Callable[[bytes, random.Random], bytes], study: Study) -> None:
    path = study.folder / MANIFEST
    whole = path.read_bytes()
    told = 0
    for number in seed:
        rng = random.Random(number)
        for _ in range(250):
            path.write_bytes(damage(whole, rng))
            try:
                manifest = Study.open(study.folder.parent, study.name).manifest
                manifest.build_space()
            except SctuneError as problem:
                told += 1
                text = str(problem)
                assert len(text.splitlines()) == 1 and len(text) < 1500, text
    assert told > 100


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"7", b"\xff\xfe", DEEP.encode(), b'{"format_version": 2}', b'{"format_version": "1"}'],
)
def test_what_is_no_manifest(content: bytes, study: Study) -> None:
    (study.folder / MANIFEST).write_bytes(content)
    with pytest.raises(StudyError, match=r"study\.json") as refused:
        Study.open(study.folder.parent, study.name)
    assert "\n" not in str(refused.value)
    assert list_studies(study.folder.parent) == [study.name]
