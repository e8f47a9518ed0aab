"""The model card: what a model is, what it was made from, what it reached and what nobody knows about it (Markdown)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sctune.config import TrialConfig
from sctune.deploy.model import ModelParts

NON_COMMERCIAL = ("-nc", "non-commercial", "noncommercial", "not-for-commercial", "research", "academic")
UNCLEAR = ("unclear", "unknown")
_DECISION = "Decision"
LIMITS = (
    "It has seen one kind of object under one camera: other parts, other light, another distance make other scores. "
    "Watch it with `sctune monitor`, and set the threshold anew with `sctune recalibrate` when normal images change.",
    "A false-alarm rate holds for images that come from where the calibration images came from, on average; a single "
    "batch may have more.",
    "What a defect of a kind that was in no data looks like to it is unknown: the escape rate is that of the defects "
    "which were tested.",
    "A heat map shows what moves the score. It is no measurement of a defect's extent.",
)


@dataclass(frozen=True)
class CardFacts:
    """What the card tells beside the model's parts.

    data: name, digest, licence, attribution; counts: images by list (Split.summary); results: name -> text, what was
    reached; extra: lines about how it was chosen; speed: a line about its latency.
    """

    config: TrialConfig
    data: Mapping[str, Any]
    counts: Mapping[str, int]
    split: Mapping[str, Any]
    results: Mapping[str, str] = field(default_factory=dict)
    extra: Sequence[str] = ()
    speed: str | None = None


def is_non_commercial(licence: str | None) -> bool:
    """Whether a licence's text forbids commercial use."""
    text = (licence or "").lower().replace(" ", "-")
    return any(word in text for word in NON_COMMERCIAL)


def is_unclear(licence: str | None) -> bool:
    """Whether a licence's text says that nobody knows what is allowed."""
    return any(word in (licence or "").lower() for word in UNCLEAR)


def model_card(parts: ModelParts, facts: CardFacts) -> str:
    """The card, whole."""
    meta, config = parts.meta, facts.config
    sections = {
        f"Model of study {meta.get('study', '?')}, trial {meta.get('trial', '?')}": _purpose(config),
        "Results": [f"{name}: {text}" for name, text in facts.results.items()] or ["none were measured yet"],
        "How it was chosen": list(facts.extra),
        _DECISION: _decision(parts),
        "Where the anomaly is": [_heat(parts.heat_map)],
        "Data": _data(facts),
        "Speed": [facts.speed] if facts.speed else [],
        "Limits": list(LIMITS),
        "Configuration": [f"`{name}` = {value}" for name, value in config.flat().items()],
    }
    blocks = []
    for level, (title, lines) in enumerate(sections.items()):
        if lines:
            blocks.append(f"{'#' if level == 0 else '##'} {title}\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n\n".join(blocks) + "\n"


def card_with_decision(card: str, parts: ModelParts, notes: Sequence[str]) -> str:
    """A card whose section on the decision tells the threshold of these parts, and the notes."""
    blocks = card.rstrip("\n").split("\n\n## ")
    lines = "\n".join(f"- {line}" for line in (*_decision(parts), *notes))
    section = f"{_DECISION}\n\n{lines}"
    if not any(block.startswith(f"{_DECISION}\n") for block in blocks):
        return "\n\n## ".join([*blocks, section]) + "\n"
    return "\n\n## ".join(section if block.startswith(f"{_DECISION}\n") else block for block in blocks) + "\n"


def _purpose(config: TrialConfig) -> list[str]:
    return [
        "purpose: tell normal images of one kind of object from anomalous ones, also of kinds that were never shown",
        f"method: {config.entry.describe(config)}",
        "output: a score, higher is more anomalous; a label where there is a threshold; a heat map on request",
        "made by: sctune; nothing in the model's files is pickled",
    ]


def _decision(parts: ModelParts) -> list[str]:
    if parts.threshold is None:
        return ["no threshold: no normal images were held out to calibrate with; the model gives scores only"]
    return [parts.threshold.line(), "an image is anomalous where its score is above the threshold"]


def _heat(chosen: Mapping[str, Any] | None) -> str:
    words = {"gradient": "the gradient of the anomaly score by the pixels", "score": "the scores of cells or pixels"}
    if not chosen:
        return f"heat maps are {words['gradient']}; nothing is claimed about how well they fit"
    kind = words.get(str(chosen["kind"]), str(chosen["kind"]))
    left_out = chosen.get("left_out")
    without = f"; {left_out} more have masks that mark nothing or do not fit" if left_out else ""
    if not chosen.get("aupro"):
        why = "there were no masks to measure them by"
        if left_out:
            why = f"the masks of {left_out} held-out defects mark nothing or do not fit"
        return f"heat maps are {kind}; {why}, and nothing is claimed"
    values = ", ".join(f"{name} {value:.3f}" for name, value in chosen["aupro"].items())
    files = f", {chosen['masks']} masks" if chosen.get("masks", chosen["images"]) != chosen["images"] else ""
    return (
        f"heat maps are {kind}, the better by AUPRO on {chosen['images']} held-out defects with masks{files} "
        f"({values}){without}"
    )


def _data(facts: CardFacts) -> list[str]:
    data, counts = facts.data, facts.counts
    lists = (f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count)
    lines = [
        f"data set {data.get('name', '?')}, SHA-256 over names and contents of the development images "
        f"`{data.get('digest', '?')}`",
        f"licence: {data.get('licence') or 'not stated'}",
        f"images: {', '.join(lists)}",
        *(f"{name}: {value}" for name, value in facts.split.items()),
    ]
    if is_non_commercial(data.get("licence")):
        lines.insert(2, "**the model is for non-commercial use, since its data are**")
    if data.get("attribution"):
        lines.append(f"attribution: {data['attribution']}")
    return lines
