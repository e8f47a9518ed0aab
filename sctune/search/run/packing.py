"""How many trials share a GPU: from what each class of configurations needs of it (`--gpus-per-trial auto`).

A class is what drives memory: method, backbone, image size, scales and batch. Its share of a card is the part that it
needs with a margin, rounded up so that shares fill a card: all, a half, a third, a quarter. Pure arithmetic; the
measuring is in `measuring.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from sctune.config import TrialConfig
from sctune.report import GPU_RESERVED, EpochReport
from sctune.search.cluster.resources import TrialResources
from sctune.search.study.manifest import CardNeed
from sctune.train.card import CONTEXT_BYTES

MARGIN = 1.2
"""A trial may take so many times what its class took when it was tried: holes in memory, larger points of the class."""

MOST_PER_CARD = 4
"""Trials on a card, however little they need: processes take turns at its processors, and each further one costs
look-behind. Not measured; a number for --gpus-per-trial packs more."""

PRECISION = 10_000
"""Ray counts shares in this many parts of a GPU, so that three thirds must be rounded down."""


@dataclass(frozen=True, order=True)
class MemoryClass:
    """What drives the memory of a trial; backbone "" and n_scales 0 where the method does not look at them."""

    method: str
    backbone: str
    image_size: int
    n_scales: int
    batch_size: int

    @classmethod
    def of(cls, config: TrialConfig) -> MemoryClass:
        entry = config.entry
        return cls(
            method=config.method.name,
            backbone=config.model.backbone if entry.looks_at("model.backbone") else "",
            image_size=config.data.image_size,
            n_scales=config.model.n_scales if entry.looks_at("model.n_scales") else 0,
            batch_size=config.budget.batch_size,
        )

    @classmethod
    def of_need(cls, need: CardNeed) -> MemoryClass:
        return cls(need.method, need.backbone, need.image_size, need.n_scales, need.batch_size)

    def covers(self, other: MemoryClass) -> bool:
        """Whether the other one needs no more: the same networks on images, scales and batches that are no larger."""
        return (self.method, self.backbone) == (other.method, other.backbone) and (
            self.image_size >= other.image_size
            and self.n_scales >= other.n_scales
            and self.batch_size >= other.batch_size
        )

    @property
    def pixels(self) -> int:
        """Of a step, each scale counted."""
        return self.image_size**2 * max(1, self.n_scales) * self.batch_size

    @property
    def text(self) -> str:
        scales = f" x {self.n_scales} scales" if self.n_scales > 1 else ""
        return (
            f"{' '.join(filter(None, (self.method, self.backbone)))}, {self.image_size} px{scales} x {self.batch_size}"
        )


def held_by(need: CardNeed, context_bytes: int = CONTEXT_BYTES) -> int:
    """Trials of a class that the memory of a card holds at a time; 0: not even one.

    context_bytes: what each process holds besides its tensors.
    """
    if need.peak_bytes is None:
        return 0
    each = math.ceil(need.peak_bytes * MARGIN) + max(need.context_bytes, context_bytes)
    # what ran alone fits alone, with a margin or without
    return max(need.card_bytes // each, 1)


def share_of(trials: int) -> float:
    """The part of a GPU that each of so many trials gets."""
    return math.floor(PRECISION / max(1, trials)) / PRECISION


Cards = Mapping[str, tuple[str, int]]
"""Node -> kind of its cards, and memory of one in bytes; the cards of a node are taken to be alike."""


class Packing:
    """Shares of the trials of one launch.

    base: of a trial of whose class nothing is known. cards: node -> kind and bytes of its cards, of the nodes that were
    asked. per_card: trials on a card for which the CPUs of some node are enough.
    """

    def __init__(
        self,
        base: TrialResources,
        needs: Sequence[CardNeed],
        cards: Cards,
        per_card: int = MOST_PER_CARD,
        on_need: Callable[[CardNeed], None] = lambda _need: None,
        alive: Callable[[], Collection[str]] | None = None,
    ) -> None:
        """on_need: told what a trial has taught of a class that nobody had tried. alive: nodes that hold
        a trial with a GPU now; None: those of `cards`.
        """
        self.base = base
        self._needs = tuple(needs)
        self._cards = dict(cards)
        self._on_need, self._alive = on_need, alive or (lambda: self._cards)
        self._most = max(1, min(per_card, MOST_PER_CARD))
        self._grown: dict[MemoryClass, float] = {}

    def resources(self, config: TrialConfig) -> TrialResources:
        """What a trial of this configuration begins with."""
        return TrialResources(self.base.cpus, self.share(MemoryClass.of(config)))

    def share(self, own: MemoryClass) -> float:
        """By the card that holds fewest of the class, of those here that hold one: where a trial goes, nobody knows."""
        held = [number for number in self._held(own).values() if number]
        share = share_of(min(self._most, *held)) if held else self.base.gpus
        return max([share, *(more for other, more in self._grown.items() if own.covers(other))])

    def avoided(self, config: TrialConfig) -> tuple[str, ...]:
        """Nodes whose cards are too small for it, where others are not."""
        held, alive = self._held(MemoryClass.of(config)), set(self._alive())
        here = {node: card for node, (card, _) in self._cards.items() if node in alive}
        # a card that nobody knows may hold it
        if all(node in here and held.get(here[node]) == 0 for node in alive):
            return ()
        return tuple(sorted(node for node, card in here.items() if held.get(card) == 0))

    def ran_out(self, config: TrialConfig, more: TrialResources) -> None:
        """A trial needed this much in the end: later ones of its class, and of larger ones, begin with it."""
        own = MemoryClass.of(config)
        if more.gpus <= 0:
            return
        self._grown[own] = max(more.gpus, self._grown.get(own, 0.0))

    def learn(self, config: TrialConfig, node: str, report: EpochReport) -> None:
        """From the first report of a trial: of a class that nobody tried on that card, it says what it needs."""
        own, card, peak = MemoryClass.of(config), self._cards.get(node), report.metrics.get(GPU_RESERVED)
        if card is None or peak is None or any(self._tried(need, own, card[0]) for need in self._needs):
            return
        found = CardNeed(
            **asdict(own),
            card=card[0],
            card_bytes=card[1],
            peak_bytes=round(peak * 2**20),
            context_bytes=0,
            epoch_seconds=report.metrics.get("seconds", 0.0),
        )
        self._needs = (*self._needs, found)
        self._on_need(found)

    @staticmethod
    def _tried(need: CardNeed, own: MemoryClass, card: str) -> bool:
        measured = MemoryClass.of_need(need)
        return need.card == card and (measured == own or (need.peak_bytes is not None and measured.covers(own)))

    @property
    def least(self) -> float:
        """The smallest share of any class that was measured; a whole GPU where none was."""
        classes = {MemoryClass.of_need(need) for need in self._needs}
        return min((self.share(one) for one in classes), default=self.base.gpus)

    @property
    def context_bytes(self) -> int:
        """The most that a process was seen to hold besides its tensors, and no less than is usual."""
        return max([CONTEXT_BYTES, *(need.context_bytes for need in self._needs)])

    def _held(self, own: MemoryClass) -> dict[str, int]:
        """Card -> trials of the class that it holds, by the measured class of no less need that holds most."""
        here = {card for card, _ in self._cards.values()}
        found: dict[str, int] = {}
        for need in self._needs:
            measured = MemoryClass.of_need(need)
            if need.card in here and measured.covers(own):
                # one that a larger class does not fit on may well hold this one: only its own measure says no
                held = held_by(need, self.context_bytes)
                if held or measured == own:
                    found[need.card] = max(held, found.get(need.card, 0))
        return found

    def lines(self) -> list[str]:
        """A line for each class, for the plan."""
        by_class: dict[MemoryClass, list[CardNeed]] = {}
        for need in self._needs:
            by_class.setdefault(MemoryClass.of_need(need), []).append(need)
        return [f"  {one.text}: {self._told(one, needs)}" for one, needs in sorted(by_class.items())]

    def _told(self, one: MemoryClass, needs: Iterable[CardNeed]) -> str:
        parts = [
            f"too small: {need.card}"
            if need.peak_bytes is None
            else f"{need.peak_bytes / 2**20:.0f} MiB and {need.epoch_seconds:.3g} s an epoch alone on {need.card}"
            for need in needs
        ]
        return f"{self.share(one):.2g} GPU ({'; '.join(parts)})"
