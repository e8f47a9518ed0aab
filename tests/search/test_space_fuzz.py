"""Space files of any shape: a valid space, or one line that names the file; nothing is executed and nothing unfolds."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from sctune.config import TrialConfig, load_profile, parse_assignments
from sctune.errors import ConfigError, SpaceError
from sctune.search.space.definition import Space, load_space
from sctune.search.space.named import shipped_spaces

THRESHOLD = "augment.threshold: {type: float, low: 0.1, high: 0.9}"


def unfolding(first: str) -> str:
    """Nine lists, each of nine times the one before: some hundred bytes stand for 400 million values."""
    lists = ["&a0 [x, x, x, x, x, x, x, x, x]"]
    lists += [f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    return f"{first}: [{', '.join(lists)}]"


CASES = {
    "not UTF-8": (b"\xff\xfeparameters", "cannot read"),
    "a zero byte": ("parameters:\0 1", "not valid YAML"),
    "a tag that runs something": ("parameters: !!python/object/apply:os.system ['touch pwned']", "not valid YAML"),
    "a tag that makes an object": ("parameters: !!python/object:subprocess.Popen {}", "not valid YAML"),
    "a bomb": (unfolding("parameters"), "more than 20000 values"),
    "a bomb in the description": (
        "parameters: {{{}}}\n{}".format(THRESHOLD, unfolding("description")),
        "more than 20000",
    ),
    "a loop": ("parameters: &a {augment.threshold: *a}", "an alias stands for something that holds it"),
    "a loop in a list": ("parameters: &a {augment.threshold: {values: [*a]}}", "an alias stands for"),
    "deep nesting": ("parameters: " + "{a: " * 3000, "nested too deeply"),
    "a key twice": (f"parameters: {{{THRESHOLD}, augment.threshold: {{values: [1]}}}}", "'augment.threshold' is there"),
    "a section twice": (f"parameters: {{{THRESHOLD}}}\nparameters: {{}}", "'parameters' is there twice"),
    "a key that is a list": ("? [a, b]\n: 1", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2", "not valid YAML"),
    "a day that is none": ("parameters: {augment.threshold: {values: [2001-99-01]}}", "not valid YAML"),
    "a day": ("parameters: {augment.threshold: {values: [2001-01-01]}}", "not a plain finite value"),
    "bytes": ("parameters: {augment.kind: {values: [!!binary aGVsbG8=]}}", "not a plain finite value"),
    "a set": ("parameters: {augment.kind: {values: !!set {a, b}}}", "must be a list of values"),
    "NaN": ("parameters: {augment.threshold: {type: float, low: .nan, high: 0.9}}", "must be a finite number"),
    "infinity": ("parameters: {augment.threshold: {type: float, low: 0, high: .inf}}", "must be a finite number"),
    "an integer of 400 digits": (
        "parameters: {model.patch_count: {type: int, low: 2, high: %s}}" % ("9" * 400),
        "must lie in -1e+15 to 1e+15",
    ),
    "a float of 400 digits": (
        "parameters: {augment.threshold: {type: float, low: 0, high: %s}}" % ("9" * 400),
        "lie in",
    ),
    "an integer of 5000 digits": ("parameters: {model.patch_count: {values: [%s]}}" % ("9" * 5000), "not valid YAML"),
    "a step of nothing": ("parameters: {augment.threshold: {type: float, low: 0, high: 1, step: 1e-320}}", "too small"),
    "a list without end": (f"parameters: {{optim.lr: {{values: {list(range(1001))}}}}}", "at most 1000 can be listed"),
    "a surrogate": ('parameters: {"\\ud800": {values: [1]}}', "unknown configuration key"),
    "a name of two lines": ('parameters: {"a\\nb": {values: [1]}}', "unknown configuration key"),
    "a number as a name": ("1: 2", "unknown key 1"),
}


@pytest.fixture(scope="module")
def base() -> TrialConfig:
    return load_profile("cpu")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_a_hostile_file_is_refused_by_one_line(
    case: str, base: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = CASES[case]
    file = tmp_path / "space.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpaceError) as caught:
        load_space(file, base)
    text = str(caught.value)
    assert message in text
    assert str(file) in text
    assert len(text.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_long_lists_are_checked_in_time(base: TrialConfig, tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    rates, margins = [n / 1e5 for n in range(1, 400)], list(range(1, 400))
    file.write_text(yaml.safe_dump({"parameters": {"optim.lr": {"values": rates}, "loss.margin": {"values": margins}}}))
    assert load_space(file, base).size() == 399 * 399
    file.write_text(
        yaml.safe_dump({"parameters": {"optim.lr": {"values": [*rates[:-1], 7]}, "loss.margin": {"values": margins}}})
    )
    with pytest.raises(SpaceError, match=r"optim\.lr=7"):
        load_space(file, base)


def test_words_are_stored_as_text(base: TrialConfig, tmp_path: Path) -> None:
    file = tmp_path / "words.yaml"
    file.write_text(f"name: ../../2001-01-01\ndescription: .nan\nparameters: {{{THRESHOLD}}}")
    stored = load_space(file, base).to_dict()
    assert json.loads(json.dumps(stored, allow_nan=False))["description"] == "nan"


@pytest.mark.parametrize("value", ["2001-99-01", "9" * 5000, "&a [*a]", "!!python/name:os.system", "{a: 1, a: 2}"])
def test_an_assignment_is_read_as_safely(value: str) -> None:
    with pytest.raises(ConfigError, match="the value is not valid YAML"):
        parse_assignments([f"optim.lr={value}"])


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates(), st.binary(max_size=5),
    st.sampled_from(["float", "int", "categorical", "ordinal", "saliencycut", "none", "1e-3", "two_head_patch", 0.4]),
)  # fmt: skip
KEYS = ("type", "low", "high", "log", "step", "choices", "values", "when", "parameters", "variants", "set", "start")
FIELDS = ("variant", "name", "augment.threshold", "augment.kind", "optim.lr", "model.patch_count", "model.heads")
WORDS = st.sampled_from((*KEYS, *FIELDS))
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=5),
    max_leaves=20,
)
PARAMETERS = st.dictionaries(WORDS, TREES | st.dictionaries(WORDS, SCALARS, max_size=5), max_size=4)
FILES = st.fixed_dictionaries(
    {"parameters": PARAMETERS},
    optional={"set": TREES, "start": TREES, "variants": TREES, "name": TREES, "format_version": SCALARS},
)


def changed(text: str, rng: random.Random) -> bytes:
    """A good file with a few bytes flipped, cut out, doubled, or a line moved."""
    content = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(content)), rng.randint(1, 12)
        kind = rng.randrange(4)
        if kind == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[place : place + length]
        elif kind == 2:
            content[place:place] = content[place : place + length]
        else:
            content[place:place] = rng.choice(
                [b"*a", b"&a ", b"!!", b"{", b"[", b": ", b"\n", b"- ", b"1e999", b"\x00"]
            )
    return bytes(content)


def check(content: bytes, base: TrialConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "space.yaml")
        file.write_bytes(content)
        try:
            space = load_space(file, base)
        except SpaceError as problem:
            event("refused")
            assert len(str(problem).splitlines()) == 1, str(problem)
            return
    event("a space")
    stored = json.loads(json.dumps(space.to_dict(), allow_nan=False))
    again = Space.from_dict(stored, space.base)
    assert again.parameters == space.parameters
    assert space.size() is None or space.size() > 0
    assert next(iter(again.probe_points()), None) is not None


def quick(examples: int, **more: Any) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), **more)


@quick(150, derandomize=True)
@given(tree=FILES)
def test_any_tree_is_a_space_or_refused(base: TrialConfig, tree: dict[str, Any]) -> None:
    check(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"), base)


@quick(150, derandomize=True)
@given(name=st.sampled_from(sorted(shipped_spaces())), seed=st.integers(0, 10**9))
def test_a_damaged_file_is_a_space_or_refused(base: TrialConfig, name: str, seed: int) -> None:
    check(changed(shipped_spaces()[name].read_text(), random.Random(seed)), base)


@pytest.mark.slow
@pytest.mark.timeout(600)
@quick(2000)
@given(tree=FILES, name=st.sampled_from(sorted(shipped_spaces())), seed=st.integers(0, 10**9))
def test_many_files_are_spaces_or_refused(base: TrialConfig, tree: dict[str, Any], name: str, seed: int) -> None:
    check(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"), base)
    check(changed(shipped_spaces()[name].read_text(), random.Random(seed)), base)
