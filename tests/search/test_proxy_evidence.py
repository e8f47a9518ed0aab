"""The line about the proxy objective says what was measured, and no more."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sctune.errors import DataError
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import make_plan
from sctune.search.plan.proxy_evidence import measured_values, proxy_warning

NOT_SHOWN = "it has not been shown to predict detection of real anomalies"
MEASURED: dict[str, Any] = {
    "format_version": 1,
    "data": "elpv",
    "profile": "cpu",
    "date": "2026-01-01",
    "settings": {
        "anomaly-free": {"configurations": 24, "kendall_tau": 0.123, "interval": [-0.1, 0.304]},
        "general-1": {"configurations": 20, "kendall_tau": 0.3, "interval": [0.05, 0.55]},
        "general-2": {"configurations": 20, "kendall_tau": 0.2999, "interval": [0.05, 0.55]},
    },
}


@pytest.fixture
def values(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.json"
    path.write_text(json.dumps(MEASURED))
    return path


def test_a_low_tau_is_not_enough(values: Path) -> None:
    assert proxy_warning("anomaly-free", 0, path=values) == (
        f"the objective is a proxy (pseudo anomalies); {NOT_SHOWN} "
        "(Kendall tau 0.12 [-0.10, 0.30] over 24 configurations on elpv, benchmarks/)"
    )


def test_from_the_limit_on_the_line_says_what_was_seen_and_where(values: Path) -> None:
    line = proxy_warning("general", 1, path=values)
    assert NOT_SHOWN not in line
    assert "to Kendall tau 0.30 [0.05, 0.55], measured over 20 configurations on elpv" in line
    assert "(heads alone, profile cpu, benchmarks/)" in line
    assert line.endswith("other data may differ")
    # not by rounding
    assert NOT_SHOWN in proxy_warning("general", 2, path=values)


@pytest.mark.parametrize(("count", "enough"), [(3, False), (19, False), (20, True)])
def test_a_high_tau_over_few_configurations_is_not_enough(tmp_path: Path, count: int, enough: bool) -> None:
    own = {"configurations": count, "kendall_tau": 0.9, "interval": [0.5, 1.0]}
    path = tmp_path / "proxy.json"
    path.write_text(json.dumps(MEASURED | {"settings": {"anomaly-free": own}}))
    line = proxy_warning("anomaly-free", 0, path=path)
    assert (NOT_SHOWN not in line) is enough
    few = f"(Kendall tau 0.90 [0.50, 1.00] over {count} configurations on elpv, of which 20 are needed, benchmarks/)"
    assert (few in line) is not enough


@pytest.mark.parametrize(("tau", "interval"), [("null", "[null, null]"), ("NaN", "[NaN, NaN]")])
def test_a_tau_that_could_not_be_worked_out_shows_nothing(tmp_path: Path, tau: str, interval: str) -> None:
    """All configurations alike: neither below nor above the limit."""
    path = tmp_path / "proxy.json"
    text = json.dumps(MEASURED).replace('0.123, "interval": [-0.1, 0.304]', f'{tau}, "interval": {interval}')
    path.write_text(text)
    assert proxy_warning("anomaly-free", 0, path=path) == (
        f"the objective is a proxy (pseudo anomalies); {NOT_SHOWN} "
        "(no Kendall tau could be worked out over 24 configurations on elpv, benchmarks/)"
    )


@pytest.mark.parametrize(
    ("setting", "n_anomalies", "key"), [("general", 3, "general-3"), ("general", "all", "general-all")]
)
def test_what_is_not_in_the_file_has_not_been_measured(values: Path, setting: Any, n_anomalies: Any, key: str) -> None:
    line = proxy_warning(setting, n_anomalies, path=values)
    assert line.startswith(f"the objective is a proxy (pseudo anomalies); {NOT_SHOWN}")
    assert line.endswith(f"that has not been measured in this setting ({key})")
    assert "tau" not in line


def test_the_hard_setting_has_a_proxy_for_one_half(values: Path) -> None:
    line = proxy_warning("hard", 10, half=True, path=values)
    assert line.startswith("half of the objective is a proxy (pseudo anomalies)")
    assert "has not been measured" in line
    assert "\n" not in line


def test_without_a_file_nothing_has_been_measured(tmp_path: Path) -> None:
    assert "has not been measured" in proxy_warning("anomaly-free", 0, path=tmp_path / "none.json")


def test_a_file_of_another_format_is_refused(values: Path) -> None:
    values.write_text(json.dumps(MEASURED | {"format_version": 2}))
    with pytest.raises(DataError, match=r"proxy\.json: format_version 2 is not 1"):
        proxy_warning("anomaly-free", 0, path=values)


def test_the_measured_values_of_the_repository_are_read_and_shipped(repository: Path) -> None:
    own = repository / "benchmarks" / "results" / "proxy.json"
    assert measured_values() == own
    for key in json.loads(own.read_text())["settings"]:
        setting, _, count = key.rpartition("-") if key != "anomaly-free" else (key, "", "0")
        line = proxy_warning(setting, int(count), path=own)
        assert "Kendall tau" in line
    hatch = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert hatch["force-include"]["benchmarks/results/proxy.json"] == "sctune/proxy.json"


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({"setting": "anomaly-free"}, ["the objective is a proxy"]),
        ({"n_anomalies": 2}, ["the objective is a proxy"]),
        ({"setting": "hard", "known_classes": ("spot",)}, ["half of the objective is a proxy"]),
        ({"selection": "extra"}, []),
    ],
)
def test_a_plan_warns_where_pseudo_anomalies_decide(
    image_folder: Path, options: dict[str, Any], starts: list[str]
) -> None:
    plan = make_plan(SearchOptions(name="s", profile="smoke", data=str(image_folder), **options), has_gpu=False)
    found = [line for line in plan.warnings if "proxy" in line]
    assert len(found) == len(starts)
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=True))
