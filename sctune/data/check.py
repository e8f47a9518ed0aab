"""`sctune data check`: what is wrong, or would be learnt by mistake, in a data set; a table of classes and findings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sctune.data.catalog import DataSet
from sctune.data.decode import Decoding
from sctune.data.duplicates import contradiction, identical, near_identical
from sctune.data.facts import ImageFacts
from sctune.data.findings import SHOWN, Finding, flags, odd_images, sizes_of, unreadable
from sctune.data.image_file import ImageFile
from sctune.data.images import ImageCache
from sctune.data.masks import mask_notes
from sctune.data.shortcuts import WARN_FROM, shortcuts
from sctune.errors import DataError

Pools = Mapping[str, Sequence[str]]
"""Name of a pool -> paths in it; the pools of one split."""


@dataclass(frozen=True)
class ClassRow:
    """One class of one part (`train`, `test`, or nothing): what its images are. brightness: mean of 0 .. 255."""

    name: str
    label: int
    count: int
    sizes: str
    modes: str
    depth: str
    brightness: float | None
    examples: tuple[str, ...]


@dataclass(frozen=True)
class DataCheck:
    """shortcuts: trivial feature -> AUROC between the classes; classes and findings in the order to be shown.

    notes: what was found before an image was decoded: files that are left out, faults of masks.
    """

    name: str
    classes: tuple[ClassRow, ...]
    findings: tuple[Finding, ...]
    shortcuts: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> list[str]:
        """A line for each class, under a head."""
        head = ("class", "images", "size", "file type and mode", "depth", "brightness", "for example")
        rows = [head] + [
            (
                row.name,
                str(row.count),
                row.sizes,
                row.modes,
                row.depth,
                "-" if row.brightness is None else f"{row.brightness:.1f}",
                ", ".join(row.examples),
            )
            for row in self.classes
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

    @property
    def warnings(self) -> list[str]:
        return [finding.line for finding in self.findings if finding.severity != "note"]

    def refuse(self) -> None:
        """Raises DataError for the first finding that must not be trained on."""
        for finding in self.findings:
            if finding.severity == "refused":
                raise DataError(f"{self.name}: {finding.line}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "format_version": 1,
            "name": self.name,
            "classes": [asdict(row) for row in self.classes],
            "findings": [asdict(finding) for finding in self.findings],
            "shortcuts": dict(self.shortcuts),
            "notes": list(self.notes),
        }


def check_data(
    data: DataSet,
    cache: ImageCache,
    decoding: Decoding,
    splits: Sequence[Pools] = (),
    decoded: Iterable[str] = (),
) -> DataCheck:
    """Look at all images of a data set, test images included: at their files and pixels, never at a score.

    splits: disjoint pools, where they are known; else the parts into which the data set's maker has put the images.
    decoded: paths that the cache has decoded together, whose facts are there.
    """
    there = set(decoded)
    digests = cache.digests(data.root, [*there, *(file.path for file in data.files)])
    rest = [path for path in digests if path not in there]
    found = cache.facts(data.root, sorted(there), decoding, digests) | cache.facts(data.root, rest, decoding, digests)
    good = {path: one for path, one in found.items() if isinstance(one, ImageFacts)}
    makers = _makers_parts(data.files)
    parts = list(splits) or ([makers] if len(makers) > 1 else [])
    trivial = shortcuts(data.files, good)
    findings = [
        *unreadable(found),
        *_identical(data, digests, parts),
        *_near(data, good, parts),
        *_shortcuts(trivial),
        *odd_images(good),
        *flags(good),
        *sizes_of(good, decoding),
    ]
    shapes = {path: (one.width, one.height) for path, one in good.items()}
    notes = (*data.notes, *mask_notes(data.root, data.files, shapes))
    return DataCheck(data.name, tuple(_classes(data.files, good)), tuple(findings), trivial, notes)


def _makers_parts(files: Sequence[ImageFile]) -> Pools:
    parts: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if file.split is not None:
            parts[file.split].append(file.path)
    return parts


def _identical(data: DataSet, digests: Mapping[str, str], parts: Sequence[Pools]) -> list[Finding]:
    files = {file.path: file for file in data.files}
    groups = identical({path: digests[path] for path in files})
    two_labels = [group for group in groups if len({files[path].label for path in group}) > 1]
    across = [group for group in groups if group not in two_labels and _across(group, parts)]
    within = [group for group in groups if group not in two_labels and group not in across]
    found = []
    if two_labels:
        count = sum(map(len, two_labels))
        text, advice = contradiction(data.root, two_labels[0]).rsplit("; ", 1)
        found.append(Finding("identical", "refused", count, text, advice, two_labels[0][:SHOWN]))
    if across:
        text = f"{len(across)} images stand byte for byte in more than one pool: {across[0][0]} = {across[0][1]}"
        advice = "remove the copies, or keep each in one pool: --allow-duplicates, or data.allow_duplicates=true"
        found.append(Finding("identical", "refused", sum(map(len, across)), text, advice, across[0][:SHOWN]))
    if within:
        text = f"{len(within)} images are there more than once, byte for byte: {within[0][0]} = {within[0][1]}"
        advice = "remove the copies; --allow-duplicates (data.allow_duplicates=true) keeps each in one pool"
        found.append(Finding("identical", "warning", sum(map(len, within)), text, advice, within[0][:SHOWN]))
    return found


def _across(group: Sequence[str], parts: Iterable[Pools]) -> bool:
    return any(sum(1 for part in pools.values() if set(group) & set(part)) > 1 for pools in parts)


def _near(data: DataSet, facts: Mapping[str, ImageFacts], parts: Sequence[Pools]) -> list[Finding]:
    # a constant picture has no structure that could be compared
    pairs = near_identical(data.root, {path: one.thumb for path, one in facts.items() if one.deviation > 0})
    if not pairs:
        return []
    labels = {file.path: file.label for file in data.files}
    crossing = [pair for pair in pairs if labels[pair[0]] != labels[pair[1]] or _across(pair, parts)]
    first = (crossing or pairs)[0]
    text = (
        f"{len(pairs)} pairs of images are nearly identical, {len(crossing)} of them across pools or labels: "
        f"{first[0]} and {first[1]}"
    )
    advice = "copies that were re-encoded or resized? name their source unit with data.group, or remove one"
    return [Finding("near", "warning", len(pairs), text, advice, first)]


def _shortcuts(trivial: Mapping[str, float]) -> list[Finding]:
    return [
        Finding(
            "shortcut",
            "warning",
            1,
            f"{name} alone tells normal from anomalous images (AUROC {value:.3f})",
            "a detector may learn that instead of the defects: take both classes with the same camera and settings",
        )
        for name, value in sorted(trivial.items(), key=lambda item: -item[1])
        if value >= WARN_FROM
    ]


def _classes(files: Sequence[ImageFile], facts: Mapping[str, ImageFacts]) -> list[ClassRow]:
    members: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    for file in files:
        members[file.split or "", file.label, file.kind].append(file.path)
    rows = []
    for (part, label, kind), paths in sorted(members.items(), key=lambda item: (item[0][0] != "train", item[0])):
        known = [facts[path] for path in paths if path in facts]
        rows.append(
            ClassRow(
                name=f"{part}/{kind}" if part else kind,
                label=label,
                count=len(paths),
                sizes=_spelt(f"{one.width}x{one.height}" for one in known),
                modes=_spelt(one.kind for one in known),
                depth=_spelt(one.depth for one in known),
                brightness=round(float(np.mean([one.mean for one in known])), 1) if known else None,
                examples=tuple(dict.fromkeys((paths[0], paths[-1]))),
            )
        )
    return rows


def _spelt(values: Iterable[str]) -> str:
    """The most frequent value, and how many others there are."""
    counts = Counter(values)
    if not counts:
        return "-"
    first, _ = counts.most_common(1)[0]
    return first if len(counts) == 1 else f"{first} +{len(counts) - 1}"
