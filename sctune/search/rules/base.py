"""What a rule is: asked after each epoch of a trial whether it goes on, ends, or pauses for the others.

Time is the trainer's own epoch: the same share of a trial's budget, whatever its method. All rules are asynchronous:
they answer at once from what has been reported so far, or from the part of it that they may know (`looks_behind`).
Values are maximised. A resumed study replays the stored reports in the order of their first arrival, so a rule is
what it was: a trial whose stop was decided, and not written down before the driver died, is stopped when it is back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

LEAST_CONFIDENCE = 0.5
"""At which a rule stops whom it stops without a confidence."""


class Decision(Enum):
    """PAUSE: the worker is given back; the trial goes on from its checkpoint once the rule promotes it."""

    CONTINUE = "continue"
    STOP = "stop"
    PAUSE = "pause"

    @classmethod
    def stop_if(cls, stop: bool) -> Decision:
        return cls.STOP if stop else cls.CONTINUE


@dataclass(frozen=True)
class RuleSettings:
    """What a rule is made from.

    epochs: the full budget of a trial, 1 or more. grace: first rung, in 1 .. epochs. factor: 2 or more, the share of
    trials that a rung lets pass is 1/factor. seed: of the study, in [0, 2**32). behind: a trial is judged by those that
    are more than so many numbers before it alone, which have all ended by then; None: by whoever came before it.
    confidence: in [0.5, 1), a trial is stopped where the chance that it would end among the survivors is below 1 minus
    that; None: where it is below the bar now.
    """

    epochs: int
    grace: int
    factor: int
    seed: int
    behind: int | None = None
    replicates: int = 1
    trials: int = 1
    confidence: float | None = None


class Rule(ABC):
    """rungs: epochs after which a trial may be stopped or paused and a checkpoint is worth keeping, ascending.

    A trial that pauses at another epoch repeats those since its last checkpoint.
    """

    rungs: tuple[int, ...] = ()
    pauses = False
    """Whether it answers PAUSE; told to people only."""
    looks_behind = False
    """Whether its answers keep to `RuleSettings.behind`, so that they do not depend on what else runs when."""

    knows_noise = False
    """Whether it keeps to `RuleSettings.confidence`; one that does not is refused where that is asked for."""

    def join(self, number: int, group: str) -> None:  # noqa: B027
        """A trial begins, or is known from an earlier launch; told before its first report. group: its method's name.

        Methods learn at different speeds, and a search over several may stop a slow one before it has begun to learn.
        A rule that compares the first rungs within a group is fair to it; this one takes no notice.
        """

    @abstractmethod
    def decide(self, number: int, epoch: int, value: float) -> Decision:
        """What becomes of the trial now; the value is remembered. Not asked about a trial's last epoch.

        A repeated epoch replaces its value and is judged by the bar that it met first, whatever arrived in between.
        A trial that has been promoted is not paused again at the epochs that it repeats, whatever is answered here.
        """

    def promote(self) -> Sequence[int]:
        """Numbers of paused trials that go on now; each is named once. Asked whenever a worker is free for a trial.

        Such trials come before new ones. Those that are still paused when nothing else is left, and are not named
        then either, end as PRUNED. A number that is not paused is passed over: after a resume a rule may not know
        yet whom it promoted.
        """
        return ()

    def promote_last(self) -> Sequence[int]:
        """Numbers of paused trials that go on where nothing else is left; asked again when those are through.

        Without it a search of few trials may have no full run.
        """
        return ()

    def promoted(self, number: int, epoch: int) -> None:  # noqa: B027
        """The trial goes on past this epoch: it was named, and the driver found it paused.

        Of an earlier launch it is told after what was reported, of trials that have not ended.
        """

    def completed(self, number: int, value: float, error: float | None) -> None:  # noqa: B027
        """The trial has come to its last epoch, with this value there.

        error: standard error of its difference to other full runs on the same selection images; None: not known. It is
        told of earlier launches in its place among what was reported.
        """

    def ended(self, number: int, failed: bool) -> None:  # noqa: B027
        """The trial has ended before its last epoch, by a failure or by the rule's word, and cannot go on any more.

        Of an earlier launch it is told after what was reported and promoted.
        """
