"""What a setting leaves no use for is left out of a space, and said, so that one space serves all settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sctune.config import Setting

Impossible = Mapping[str, tuple[Any, ...]]

WITHOUT_ANOMALIES: Impossible = {"model.heads": ("single_head",), "augment.kind": ("none",)}
"""Field -> values that cannot be trained without a labelled anomaly (TrialConfig refuses them)."""


def possible_in(tree: Mapping[str, Any], setting: Setting) -> tuple[dict[str, Any], list[str]]:
    """A space file's content without what cannot be in the setting, and a line for the user where that is something.

    Choices, variants, start points and parameters that only go with them are left out; what is written wrongly stays,
    for the checks to name it.
    """
    if setting != "anomaly-free":
        return dict(tree), []
    parameters, left_out = _parameters(_mapping(tree, "parameters"), WITHOUT_ANOMALIES)
    variants = {
        name: fields for name, fields in _mapping(tree, "variants").items() if not _meets(fields, WITHOUT_ANOMALIES)
    }
    left_out += [f"variant {name}" for name in _mapping(tree, "variants") if name not in variants]
    if not left_out:
        return dict(tree), []
    gone = _mapping(tree, "parameters").keys() - parameters.keys()
    changed = dict(tree) | ({"parameters": parameters} if "parameters" in tree else {})
    changed |= {"variants": variants} if "variants" in tree else {}
    if isinstance(tree.get("start"), list):
        points = [point for point in tree["start"] if not _meets(point, WITHOUT_ANOMALIES)]
        changed["start"] = [_without(point, gone) for point in points]
    return changed, [f"left out of the space, since nothing anomalous is trained on: {', '.join(left_out)}"]


def _parameters(parameters: Mapping[str, Any], impossible: Impossible) -> tuple[dict[str, Any], list[str]]:
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    for name, body in parameters.items():
        changed = _with_possible_conditions(body, impossible)
        if changed is None:
            left_out.append(name)
            continue
        for key in ("choices", "values"):
            listed = changed.get(key) if isinstance(changed, Mapping) else None
            if isinstance(listed, list) and name in impossible:
                left_out += [f"{name}={value}" for value in listed if value in impossible[name]]
                changed = {**changed, key: [value for value in listed if value not in impossible[name]]}
        kept[name] = changed
    return kept, left_out


def _with_possible_conditions(body: Any, impossible: Impossible) -> Any:
    """A parameter whose `when:` names no impossible value; None where it could never be active."""
    when = body.get("when") if isinstance(body, Mapping) else None
    if not isinstance(when, Mapping):
        return body
    held = {}
    for other, allowed in when.items():
        values = allowed if isinstance(allowed, list) else [allowed]
        rest = [value for value in values if value not in impossible.get(str(other), ())]
        if values and not rest:
            return None
        held[other] = rest if isinstance(allowed, list) else allowed
    return {**body, "when": held}


def _meets(point: Any, impossible: Impossible) -> bool:
    return isinstance(point, Mapping) and any(point.get(name) in values for name, values in impossible.items())


def _without(point: Any, names: set[str]) -> Any:
    return {name: value for name, value in point.items() if name not in names} if isinstance(point, Mapping) else point


def _mapping(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}
