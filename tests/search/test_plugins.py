"""Samplers and rules of other packages, as docs/extending.md shows them: found by their entry points alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sctune.errors import ConfigError
from sctune.search.rules.base import Decision
from sctune.search.rules.registry import make_rule, rule_names
from sctune.search.suggest.samplers import make_sampler, sampler_entry, sampler_names
from tests.builders import FLAT
from tests.plugins import documented, write_package
from tests.search.searching import make_study, open_searcher, run_whole, suggest

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package on the path: name, source, entry points."""

    def write(name: str, source: str, entry_points: dict[str, dict[str, str]]) -> None:
        monkeypatch.syspath_prepend(str(write_package(tmp_path / name, name, source, entry_points)))

    return write


def test_a_sampler_of_another_package_draws_a_study(tmp_path: Path, install: Install) -> None:
    install("halton_sampler", documented("A sampler"), {"sctune.samplers": {"halton": "halton_sampler:HALTON"}})
    assert sampler_names()[-1] == "halton"
    study = make_study(tmp_path, FLAT, 6, "halton")
    drawn: list[Any] = []
    for launch in range(2):
        searcher = open_searcher(study)
        for trial in range(2):
            config = suggest(searcher, f"{launch}-{trial}")
            drawn.append(config["params"])
            run_whole(searcher, f"{launch}-{trial}", 0.5)
        searcher.controller.record.close()
    # a resume goes on in the sequence
    thresholds = [params["augment.threshold"] for params in drawn]
    assert thresholds == pytest.approx([0.1 + 0.8 * x for x in (0.5, 0.25, 0.75, 0.125)])


def test_a_rule_of_another_package_pauses_and_promotes(install: Install) -> None:
    install("first_look", documented("A rule"), {"sctune.rules": {"first-look": "first_look:FirstLook"}})
    assert rule_names()[-1] == "first-look"
    rule = make_rule("first-look", 3, 1, 2, 0)
    assert rule is not None and rule.rungs == (1,)
    assert [rule.decide(number, 1, 0.5 + number / 10) for number in range(4)] == [Decision.PAUSE] * 4
    assert list(rule.promote()) == [3, 2] and list(rule.promote()) == []
    assert rule.decide(3, 2, 0.1) is Decision.CONTINUE


def test_mistakes_of_a_package_are_told_in_a_line(install: Install) -> None:
    install(
        "odd",
        "import nothing_of_that_name\n",
        {"sctune.rules": {"odd": "odd:Odd", "asha": "odd:Odd"}, "sctune.samplers": {"odd": "json:loads"}},
    )
    with pytest.raises(ConfigError, match=r"'odd' of package odd cannot be loaded \(ModuleNotFoundError"):
        make_rule("odd", 9, 1, 3, 0)
    # sctune's own keep their names
    assert type(make_rule("asha", 9, 1, 3, 0)).__module__ == "sctune.search.rules.stopping"
    with pytest.raises(ConfigError, match=r"sampler 'odd' of another package is .*must be a SamplerEntry"):
        sampler_entry("odd")
    with pytest.raises(ConfigError, match="did you mean 'odd'"):
        make_sampler("odt", 0)
    install("other", "def make(settings): ...\n", {"sctune.rules": {"odd": "other:make"}})
    with pytest.raises(ConfigError, match=r"'odd' .* is given by several packages \(odd:Odd, other:make\)"):
        make_rule("odd", 9, 1, 3, 0)
