"""What a converter says of a raw folder before anything is written, and what is published about a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sctune.data.image_file import GOOD
from sctune.data.manifest import Split

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are not part of it."""


@dataclass(frozen=True)
class RawImage:
    """One image to be made, from one raw file.

    name: file name to be; source: raw file, relative to the raw folder; kind: `good` or the defect type; split: None
    where the 75/25 rule still has to say; unit: the part or strip it is cut from; group: source unit that no split may
    cut. box: what is cut out and saved as PNG, the width beyond the image being mirrored; without one a .npy file
    becomes a PNG and any other is copied byte for byte. masks: raw mask files, joined where there are several.
    """

    name: str
    source: str
    kind: str
    split: Split | None = None
    category: str = ""
    unit: str | None = None
    group: str | None = None
    box: Box | None = None
    masks: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """[category/]split/kind in the prepared folder; the split must be known."""
        return "/".join(part for part in (self.category, str(self.split), self.kind) if part)

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}"

    @property
    def mask_path(self) -> str | None:
        """[category/]ground_truth/kind/STEM_mask.png, None without masks."""
        if not self.masks:
            return None
        name = PurePosixPath(self.name).with_suffix("").as_posix() + "_mask.png"
        return "/".join(part for part in (self.category, "ground_truth", self.kind, name) if part)


@dataclass(frozen=True)
class RawPlan:
    """All that a raw folder gives.

    root: where the raw layout begins; images: in the order in which the 75/25 rule draws; categories: those that
    should be there, "" for a data set without; missing_masks: raw mask files that the layout promises.
    """

    root: Path
    images: tuple[RawImage, ...]
    categories: tuple[str, ...] = ("",)
    missing_masks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counts:
    """Published numbers of images; kinds: number by defect type, None where only the name is known."""

    train_good: int
    test_good: int
    anomalies: int
    kinds: Mapping[str, int | None] = field(default_factory=dict)

    def differences(self, found: Mapping[str, int], grouped: bool) -> list[str]:
        """One text for each number that is another one.

        found: images by folder below the category; grouped: the normals are split by source unit, so that only
        their sum can be compared.
        """
        normals = {"train/good": self.train_good, "test/good": self.test_good}
        anomalies = {place: number for place, number in found.items() if place not in normals}
        if grouped:
            pairs = [("normal images", sum(found.get(place, 0) for place in normals), sum(normals.values()))]
        else:
            pairs = [(place, found.get(place, 0), number) for place, number in normals.items()]
        pairs.append(("anomalies", sum(anomalies.values()), self.anomalies))
        pairs += [
            (f"test/{kind}", anomalies.get(f"test/{kind}", 0), number)
            for kind, number in self.kinds.items()
            if number is not None
        ]
        texts = [f"{place} {has} instead of {wants}" for place, has, wants in pairs if has != wants]
        if self.kinds:
            kinds = {place.partition("/")[2] for place in anomalies}
            unsure = {kind for kind, number in self.kinds.items() if number is None}
            texts += [f"unknown class {kind}" for kind in sorted(kinds - self.kinds.keys())]
            texts += [f"no image of class {kind}" for kind in sorted(unsure - kinds)]
        return texts


@dataclass(frozen=True)
class RawSet:
    """One of the paper's data sets: what is published about it, and how its raw folder is read.

    expected: by category ("" without), the accepted alternatives; layout: what the raw folder must hold, for
    messages; evidence: how sure counts and licence are; unit: what an image is cut from; unit_pattern: finds that in
    a prepared path; remarks: what its user should know.
    """

    name: str
    title: str
    licence: str
    attribution: str
    page: str
    evidence: str
    layout: str
    expected: Mapping[str, tuple[Counts, ...]]
    is_raw: Callable[[Path], bool]
    plan: Callable[[Path], RawPlan]
    unit: str | None = None
    unit_pattern: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def categories(self) -> list[str]:
        return [name for name in self.expected if name]

    @property
    def totals(self) -> Counts:
        """Summed over the categories; where alternatives are accepted, the last one."""
        parts = [alternatives[-1] for alternatives in self.expected.values()]
        return Counts(
            sum(part.train_good for part in parts),
            sum(part.test_good for part in parts),
            sum(part.anomalies for part in parts),
        )

    def differences(self, plan: RawPlan, images: Iterable[RawImage], grouped: bool) -> list[str]:
        """What differs from the published counts, compared with the nearest accepted alternative."""
        found: dict[str, Counter[str]] = {category: Counter() for category in plan.categories}
        for image in images:
            found.setdefault(image.category, Counter())[f"{image.split}/{image.kind}"] += 1
        texts = []
        for category, counts in sorted(found.items()):
            prefix = f"{category}: " if category else ""
            alternatives = self.expected.get(category)
            if alternatives is None:
                texts.append(f"{prefix}unknown category")
            elif not counts:
                texts.append(f"{prefix}missing")
            else:
                nearest = min((one.differences(counts, grouped) for one in alternatives), key=len)
                texts += [prefix + text for text in nearest]
        return texts


def folder_counts(images: Iterable[RawImage]) -> dict[str, int]:
    """Images by folder of the prepared data set, sorted."""
    return dict(sorted(Counter(image.folder for image in images).items()))


def normals_first(images: Iterable[RawImage]) -> tuple[RawImage, ...]:
    """Normals, then anomalies, each sorted by category, type and name: the order that the 75/25 rule draws in."""
    return tuple(sorted(images, key=lambda image: (image.kind != GOOD, image.category, image.kind, image.name)))
