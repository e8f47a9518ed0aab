"""What a launch asks of the place where its trials are written down; `Record` is the one that lasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from sctune.report import EpochReport


class RecordLike(Protocol):
    """See `Record`, which says what each of these does."""

    @property
    def foreign(self) -> tuple[int, ...]: ...
    def load(self) -> list[FrozenTrial]: ...
    def load_study_attrs(self) -> dict[str, Any]: ...
    def check(self) -> None: ...
    def flush(self) -> None: ...
    def hurry(self, seconds: float) -> None: ...
    def start(self, frozen: FrozenTrial) -> None: ...
    def set_attrs(self, number: int, attrs: Mapping[str, Any]) -> None: ...
    def set_study_attrs(self, attrs: Mapping[str, Any]) -> None: ...
    def report(self, number: int, report: EpochReport, timestamp_ms: int) -> None: ...
    def finish(self, number: int, state: TrialState, value: float | None, attrs: Mapping[str, Any]) -> None: ...


class Unrecorded:
    """A store that keeps nothing: of a search that is over when its process is."""

    foreign: tuple[int, ...] = ()

    def load(self) -> list[FrozenTrial]:
        return []

    def load_study_attrs(self) -> dict[str, Any]:
        return {}

    def check(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def hurry(self, seconds: float) -> None:
        pass

    def start(self, frozen: FrozenTrial) -> None:
        pass

    def set_attrs(self, number: int, attrs: Mapping[str, Any]) -> None:
        pass

    def set_study_attrs(self, attrs: Mapping[str, Any]) -> None:
        pass

    def report(self, number: int, report: EpochReport, timestamp_ms: int) -> None:
        pass

    def finish(self, number: int, state: TrialState, value: float | None, attrs: Mapping[str, Any]) -> None:
        pass
