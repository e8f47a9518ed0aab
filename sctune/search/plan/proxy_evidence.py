"""What is known about the proxy objective: Kendall's tau between it and detection of real anomalies, as measured.

The figures come from `benchmarks/` and are shipped with the package; nothing is said that was not measured.
"""

from __future__ import annotations

import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from sctune.config import Setting
from sctune.errors import DataError

FORMAT_VERSION = 1
TAU_ENOUGH = 0.3
"""Kendall's tau from which on a search no longer calls the proxy unproven (DESIGN section 6)."""
CONFIGURATIONS_ENOUGH = 20
"""Over fewer of them tau says nothing either way."""


def proxy_warning(
    setting: Setting, n_anomalies: int | Literal["all"], *, half: bool = False, path: Path | None = None
) -> str:
    """One line about an objective made of pseudo anomalies, with the evidence for this setting.

    half: the hard setting, where real anomalies are the other half. n_anomalies: trained on, 0 where the setting
    has none. path: the measured values; None: those that come with sctune. Raises DataError for a file of another
    format.
    """
    share = "half of the objective is" if half else "the objective is"
    key = setting if setting == "anomaly-free" else f"{setting}-{n_anomalies}"
    evidence = _read(measured_values() if path is None else path)
    found = evidence.get("settings", {}).get(key)
    if found is None:
        return (
            f"{share} a proxy (pseudo anomalies); it has not been shown to predict detection of real anomalies: "
            f"that has not been measured in this setting ({key})"
        )
    measured, count = _number(found["kendall_tau"]), found["configurations"]
    tau = "no Kendall tau could be worked out" if measured is None else f"Kendall tau {measured:.2f}"
    low, high = (_number(bound) for bound in found["interval"])
    if measured is not None and low is not None and high is not None:
        tau += f" [{low:.2f}, {high:.2f}]"
    where = f"over {count} configurations on {evidence['data']}"
    if not (measured is not None and measured >= TAU_ENOUGH and count >= CONFIGURATIONS_ENOUGH):
        few = f", of which {CONFIGURATIONS_ENOUGH} are needed" if count < CONFIGURATIONS_ENOUGH else ""
        return (
            f"{share} a proxy (pseudo anomalies); it has not been shown to predict detection of real anomalies "
            f"({tau} {where}{few}, benchmarks/)"
        )
    return (
        f"{share} a proxy (pseudo anomalies); its order of configurations agrees with that by real anomalies to "
        f"{tau}, measured {where} (heads alone, profile {evidence['profile']}, benchmarks/); other data may differ"
    )


def measured_values() -> Path:
    """The file of the measured values, whether or not it is there."""
    inside = Path(str(files("sctune").joinpath("proxy.json")))
    # an editable install has it beside the package, as the repository does
    return inside if inside.is_file() else inside.parent.parent / "benchmarks" / "results" / "proxy.json"


def _number(value: float | None) -> float | None:
    """The value; None where there is none, written as null or, by older benchmarks, as NaN."""
    return value if value is not None and math.isfinite(value) else None


def _read(path: Path) -> dict[str, Any]:
    """The measured values; empty where there is no file."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{path}: format_version {content.get('format_version')!r} is not {FORMAT_VERSION}")
    return dict(content)
