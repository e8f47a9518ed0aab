"""The errors that sctune raises on purpose; the command line turns each into one line and an exit code.

Anything else that escapes is a bug and shows its traceback (exit code 1).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class SctuneError(Exception):
    """Base of all errors with a message for the user: the value, the rule, the way out."""

    exit_code = 2


class ConfigError(SctuneError):
    """A configuration that cannot be: unknown key, value out of range, impossible combination."""


class SpaceError(ConfigError):
    """A search space file that cannot be used."""


class DataError(SctuneError):
    """Images, labels or splits that cannot be used; names the file or folder."""


class PlaceError(DataError):
    """What this machine lacks, and another may have: the image folder, a file that can be read, room for the cache."""


class ChangedDataError(DataError):
    """Images that are not those that a study began with, or that its driver sees."""


class WeightsError(SctuneError):
    """Backbone weights that cannot be had or do not fit."""


class CheckpointError(SctuneError):
    """A checkpoint that is damaged, incomplete or of another configuration."""


class StorageError(CheckpointError):
    """The storage of checkpoints does not answer, or takes nothing; the checkpoints themselves may be whole.

    kind: what the driver is told of it.
    """

    kind = "storage away"

    @classmethod
    def of(cls, problem: OSError) -> StorageError:
        """The error for what a file system raised."""
        error = cls(" ".join(str(problem).split())[:300])
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            error.kind = "disk full"
        return error


class StudyError(SctuneError):
    """A study that exists already, does not exist, or cannot go on."""


class UnrecordedStopError(StudyError):
    """A launch that was stopped while its database was away; the checkpoints tell the rest again."""

    exit_code = 3


class EndedAtOnceError(StudyError):
    """A launch that a second signal ended before it had left cleanly; its trials go on with a resume."""

    exit_code = 3


class FencedError(StudyError):
    """Another driver has the study by now; this one writes nothing more of it."""


class TrackingError(SctuneError):
    """A tracking server that does not answer or refuses."""


class ClusterError(SctuneError):
    """A Ray cluster that cannot be reached or whose nodes disagree with the driver."""


class NonFiniteError(SctuneError):
    """A loss, score or metric that is not a finite number; fails the trial, not the study."""


class StoppedError(SctuneError):
    """A training that was asked to end between two iterations; nothing is wrong with it."""


class NodeLeavingError(SctuneError):
    """The node of a trial is being taken away; the trial goes on elsewhere, and nothing is wrong with it."""


class AllTrialsFailedError(SctuneError):
    """Every trial of the study failed."""

    exit_code = 4


MOST_NAMED = 50
"""Known names that a message lists: it stays one that can be read."""


def nearest(name: str, known: Iterable[str]) -> str:
    """End of a message about an unknown name: the nearest known one, else all of them, or the first of many."""
    names = sorted(map(str, known))
    close = get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f", ... ({len(names)} in all)" if len(names) > MOST_NAMED else ""
    return f"known: {', '.join(names[:MOST_NAMED]) or 'none'}{more}"
