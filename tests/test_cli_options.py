"""Options have one definition: SearchOptions gives the command line its help, its panels and its limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from sctune.cli import PANELS, app
from sctune.cli.operate import _words
from sctune.config import load_profile
from sctune.errors import ConfigError, SpaceError
from sctune.methods.named import method_names
from sctune.search.plan.method_space import method_space
from sctune.search.plan.options import OPTION_NAMES, SearchOptions
from sctune.search.space import definition
from sctune.search.space.named import method_spaces, shipped_spaces
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.options import StudyOptions

GROUPS = ("Data", "Space", "Budget", "Machines", "Places", "Output")


def search_options() -> dict[str, Any]:
    """Long flag without dashes -> option of `sctune search`."""
    command = get_command(app).commands["search"]  # type: ignore[attr-defined]
    return {parameter.opts[0].removeprefix("--"): parameter for parameter in command.params}


def test_every_field_is_an_option_with_its_description() -> None:
    options = search_options()
    for field, info in SearchOptions.model_fields.items():
        option = options.pop(OPTION_NAMES.get(field, field).replace("_", "-"))
        assert option.help == info.description, field
        assert option.rich_help_panel == info.json_schema_extra["panel"], field  # type: ignore[index, call-overload]
    assert set(options) <= {"notify", "detach", "dry-run", "json", "help"}


def test_every_published_method_is_named(repository: Path) -> None:
    (row,) = (line for line in (repository / "README.md").read_text().splitlines() if line.startswith("| `--method` |"))
    for text in (SearchOptions.model_fields["method"].description or "", row):
        assert set(method_names()) <= set(re.findall(r"\w+", text))


def test_spaces_of_methods_are_listed_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definition, "check_feasible", lambda *_: None)

    def spaces(*words: str) -> str:
        return CliRunner().invoke(app, ["spaces", *words], catch_exceptions=False).stdout

    listed = [line.split()[0] for line in spaces().splitlines()]
    assert {*shipped_spaces(), *method_spaces(), "method"} == set(listed) and len(set(listed)) == len(listed)
    shown = spaces("method", "--profile", "gpu")
    assert yaml.safe_load(shown) == method_space("gpu", load_profile("gpu"), {}).to_dict() and "&" not in shown
    assert yaml.safe_load(spaces("ssm")) == {"format_version": 1, **method_spaces()["ssm"]}
    assert spaces("fig7a") == shipped_spaces()["fig7a"].read_text()
    with pytest.raises(SpaceError, match="did you mean 'cutpaste'"):
        spaces("cutpast")


def test_gpus_of_a_trial_are_a_number_or_auto() -> None:
    def given(text: str) -> object:
        return SearchOptions.from_command({"gpus_per_trial": text}).gpus_per_trial

    assert [given(text) for text in ("auto", "0.5", "2", ".25", "0")] == ["auto", 0.5, 2.0, 0.25, 0.0]
    for wrong in ("", "Auto", "-1", "1e3", "nan", "half"):
        with pytest.raises(ConfigError, match=r"--gpus-per-trial .*give a number from 0 on, for example 0\.5, or auto"):
            given(wrong)


def test_help_comes_in_panels_in_their_order() -> None:
    wide = {"COLUMNS": "120", "TERM": "dumb"}
    text = CliRunner().invoke(app, ["search", "--help"], env=wide).stdout
    assert [text.index(f"─ {group} ─") for group in GROUPS] == sorted(text.index(f"─ {group} ─") for group in GROUPS)
    top = CliRunner().invoke(app, ["--help"], env=wide).stdout
    assert [panel for panel in PANELS if f"─ {panel} ─" in top] == list(PANELS)


def test_every_command_stands_in_a_panel() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert all(command.rich_help_panel in PANELS for command in commands.values())


def test_times_sizes_and_lists_are_read_as_people_write_them() -> None:
    given = {"time_budget": "2h", "max_disk": "20GB", "seeds": "42,43", "n_anomalies": "10", "set": ["seed=3"]}
    options = SearchOptions.from_command(given | {"category": ["carpet", "grid"], "name": None})
    assert options == SearchOptions(
        time_budget_s=7200.0,
        max_disk=20_000_000_000,
        seeds=(42, 43),
        n_anomalies=10,
        overrides={"seed": 3},
        categories=("carpet", "grid"),
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"time_budget": "soon"}, "--time-budget 'soon': give a time such as 90s, 30m, 2h or 1d"),
        ({"max_disk": "much"}, "--max-disk 'much': give a size such as 500MB or 20GB"),
        ({"max_disk": "0"}, "--max-disk '?0'?: Input should be greater than or equal to 1"),
        ({"seeds": "1;2"}, "--seeds '1;2': give whole numbers with commas, for example 42,43,44"),
        ({"n_anomalies": "few"}, "--n-anomalies 'few': give a number from 1 on, or all"),
        ({"setting": "easy"}, "--setting 'easy': Input should be 'general', 'hard' or 'anomaly-free'"),
        ({"audit": 1.5}, "--audit 1.5: Input should be less than or equal to 1"),
        ({"factor": 1}, "--factor 1: Input should be greater than or equal to 2"),
        ({"set": ["augment"]}, "--set 'augment': write key=value"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_value_names_its_option(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        SearchOptions.from_command(given)


def test_the_manifest_keeps_the_shared_options_under_their_names() -> None:
    assert StudyOptions.model_fields.keys() <= SearchOptions.model_fields.keys() & StudyManifest.model_fields.keys()


@pytest.mark.parametrize("word", ["--references", "--no-references", None])
def test_a_detached_search_is_asked_for_the_same(word: str | None) -> None:
    command = get_command(app).commands["search"]  # type: ignore[attr-defined]
    context = command.make_context("search", ["--name", "n", *([] if word is None else [word])])
    words = _words(context, "n", None, ())
    assert [one for one in words if "references" in one] == ([] if word is None else [word])


def test_a_detached_search_finds_a_prior_and_takes_no_name_for_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hall").mkdir()
    (tmp_path / "mine.yaml").write_text("")
    command = get_command(app).commands["search"]  # type: ignore[attr-defined]
    given = ["--prior", "paper", "--prior", "hall", "--prior", "mine.yaml"]
    words = _words(command.make_context("search", ["--name", "n", *given]), "n", None, ())
    found = [words[place + 1] for place, word in enumerate(words) if word == "--prior"]
    assert found == ["paper", "hall", str(tmp_path / "mine.yaml")]


def test_a_limit_stands_in_one_place() -> None:
    found = CliRunner().invoke(app, ["search", "--max-concurrent", "0"], standalone_mode=False)
    assert isinstance(found.exception, typer.BadParameter.__mro__[1])
