"""How a search may select: the mode and its reason, folds over the seen anomalies, what is scored (DESIGN 6)."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from sctune.data.catalog import ImageFile
from sctune.data.pools import Files, by_path, generator
from sctune.errors import DataError

SPARE_ENOUGH = 20
"""Spare anomalies from which on their AUROC is steady enough to select by (standard deviation .06)."""
SEEN_LEAST = 4
MODES = ("auto", "extra", "seen", "cross", "proxy", "test")


def resolve_mode(selection: str, setting: str, seen: int, spare: int, parts: int) -> tuple[str, str]:
    """The mode and its reason; parts: folds that the anomalies give, below 2 where they cannot be folded."""
    foldable = seen >= SEEN_LEAST and parts >= 2
    if selection == "proxy":
        return "proxy", "asked for: pseudo anomalies of makers that no space trains with"
    if setting == "anomaly-free":
        if selection != "auto":
            raise DataError(f"data.selection={selection} needs labelled anomalies; anomaly-free takes auto or proxy")
        return "proxy", "the anomaly-free setting has no labelled anomalies to select by"
    if selection == "extra":
        if spare < 1:
            raise DataError("data.selection=extra needs 1 spare anomaly at least; there is none, use seen or proxy")
        return "extra", f"asked for: {spare} spare labelled anomalies beside the {seen} trained on"
    if selection == "seen":
        if not foldable:
            raise DataError(
                f"data.selection=seen needs {SEEN_LEAST} anomalies at least, of two source units; {seen} are there, "
                "use extra or proxy"
            )
        return "seen", f"asked for: {parts} folds over the {seen} seen anomalies"
    if selection == "cross":
        if parts < 2:
            raise DataError(
                "data.selection=cross holds out folds of the development pool's anomalies, of two source units at "
                "least; there are fewer, use proxy"
            )
        return "cross", f"asked for: {parts} folds over the anomalies of the development pool"
    if seen < SEEN_LEAST:
        return "proxy", f"{seen} seen anomalies are too few to select by ({SEEN_LEAST} are needed)"
    if spare >= SPARE_ENOUGH:
        return "extra", f"{spare} spare labelled anomalies select, {seen} are trained on ({SPARE_ENOUGH} are enough)"
    if not foldable:
        return "proxy", f"{spare} spare anomalies are too few and the {seen} seen ones cannot be folded"
    return "seen", f"{spare} spare anomalies are fewer than {SPARE_ENOUGH}: {parts} folds over the {seen} seen ones"


def seen_folds(files: Files, folds: int, seed: int) -> list[Files]:
    """At most `folds` disjoint parts, near equal in size, each sorted by path.

    Where the files hold two anomaly types or more, whole types go into a fold, so that a fold asks for types that
    were not trained on (open set); then there are as many folds as types at most. A source unit is never cut.
    """
    bundles = _bundles(files, "kind")
    if len(bundles) < 2:
        bundles = _bundles(files, "group")
    names = sorted(bundles)
    order = [names[row] for row in generator(seed, "folds").permutation(len(names))]
    parts: list[list[ImageFile]] = [[] for _ in range(min(folds, len(order)))]
    for name in sorted(order, key=lambda name: -len(bundles[name])):
        min(parts, key=len).extend(bundles[name])
    return [by_path(part) for part in parts]


def cross_folds(files: Files, folds: int, seed: int) -> list[Files]:
    """At most `folds` disjoint parts that cover the files, each sorted by path, their kinds mixed alike.

    A source unit is never cut. Empty where there are fewer than two units.
    """
    files = by_path(files)
    count = min(folds, len({file.group for file in files}))
    if count < 2:
        return []
    kinds, groups = [file.kind for file in files], [file.group for file in files]
    if max(map(kinds.count, kinds)) < count:
        # no kind reaches every fold, so that there is nothing to mix
        kinds = [""] * len(files)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=generator(seed, "cross"))
    with warnings.catch_warnings():
        # a rare kind is in some folds only
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        rows = [held for _, held in splitter.split(kinds, kinds, groups)]
    return [tuple(files[row] for row in held) for held in rows if len(held)]


def stratified(files: list[ImageFile], limit: int, random: np.random.RandomState) -> list[ImageFile]:
    if len(files) <= limit:
        return files
    kinds = sorted({file.kind for file in files})
    members = {kind: [file for file in files if file.kind == kind] for kind in kinds}
    exact = {kind: limit * len(members[kind]) / len(files) for kind in kinds}
    counts = {kind: int(exact[kind]) for kind in kinds}
    # largest remainders get what rounding down left over
    for kind in sorted(kinds, key=lambda kind: counts[kind] - exact[kind])[: limit - sum(counts.values())]:
        counts[kind] += 1
    return [members[kind][row] for kind in kinds for row in random.permutation(len(members[kind]))[: counts[kind]]]


def _bundles(files: Files, field: str) -> dict[str, list[ImageFile]]:
    """Files by kind or group; kinds that share a source unit become one bundle, named by its first kind."""
    names = [getattr(file, field) for file in files]
    bundle = {name: name for name in names}
    first: dict[str, str] = {}
    for file, name in zip(files, names, strict=True):
        both = {bundle[name], bundle[first.setdefault(file.group, name)]}
        if len(both) == 2:
            bundle = {key: min(both) if value in both else value for key, value in bundle.items()}
    bundles: dict[str, list[ImageFile]] = {}
    for file, name in zip(files, names, strict=True):
        bundles.setdefault(bundle[name], []).append(file)
    return bundles
