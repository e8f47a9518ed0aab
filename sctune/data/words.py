"""Words for good and bad, as people write them in names of folders and in tables."""

from __future__ import annotations

from collections.abc import Iterable

from sctune.errors import DataError

GOOD_FOLDERS = frozenset({"good", "ok", "normal", "pass"})
"""Names of a folder of good images, in lower case."""
_REFUSED = frozenset({"nok", "ng", "bad", "fail", "failed", "reject", "rejected"})
BAD_FOLDERS = _REFUSED | {"defect", "defects", "defective", "anomaly", "anomalies", "anomalous", "abnormal"}
"""Names of a folder of anomalous images, in lower case; any other name is a kind of defect where one is expected."""

NORMAL_LABELS = frozenset({"0", "false", "normal", "good", "ok", "pass", "passed"})
ANOMALOUS_LABELS = frozenset(
    ["1", "true", "anomalous", "anomaly", "abnormal", "defect", "defective", "nok", "ng", "bad", "fail", "failed"]
)
TRUTH_LABELS = frozenset({"true", "false"})


def folded(name: str) -> str:
    """A name as it is compared: without blanks around it, in lower case."""
    return name.strip().lower()


def is_good_folder(name: str) -> bool:
    return folded(name) in GOOD_FOLDERS


def refuse_contrary(place: str, folders: Iterable[str], label: int) -> None:
    """Raises DataError for a folder whose name says the contrary of the label (0 normal, 1 anomalous) of its images.

    place: the folder, for the message; folders: the names that stand for its images.
    """
    for name in folders:
        if label and is_good_folder(name):
            raise DataError(
                f"{place}: a folder called {name!r} among the anomalies would make good images anomalous; move it to "
                "the normal images, or rename it if it holds a kind of defect"
            )
        if not label and folded(name) in BAD_FOLDERS:
            raise DataError(
                f"{place}: a folder called {name!r} among the normal images would be trained on as normal; move it to "
                "the anomalies, or rename it if its images are good"
            )


def label_of(text: str) -> int | None:
    """0 normal or 1 anomalous, in any case; numbers also as 0.0 and 0,0; None for any other word."""
    word = folded(text)
    if word in NORMAL_LABELS or word in ANOMALOUS_LABELS:
        return int(word in ANOMALOUS_LABELS)
    try:
        number = float(word.replace(",", "."))
    except ValueError:
        return None
    return int(number) if number in (0, 1) else None
