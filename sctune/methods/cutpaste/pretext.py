"""The batches of the pretext task: each normal image as it is and with what is pasted (paper section 2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sctune.augment.changes import changed
from sctune.augment.cut import Cut
from sctune.augment.cutpaste import cutpaste
from sctune.augment.jitter import draw_jitter, jitter_colours
from sctune.config import AugmentConfig, TrialConfig
from sctune.data.batches import endless, stream
from sctune.data.transfer import to_device
from sctune.methods.base import PseudoExample, TaskImages
from sctune.methods.cutpaste.entry import RULES, Rule, batch_parts, section_of
from sctune.methods.pixels import normalise, to_images, to_pixels

WORDS: dict[Rule, str] = {"normal": "patch pasted", "scar": "scar pasted", "union": "patch or scar pasted"}


class Pretext:
    """Makes batch number 0, 1, ... of a training; the number alone decides what is drawn.

    Class 0 are normal images, classes 1 and 2 the same ones with what the variant pastes, the last one labelled
    anomalies where they are asked for. Each copy moves by a draw of its own, then something is pasted, which so lies
    whole inside the image, and then its colours change: two copies of one image are not alike beside what was pasted.
    """

    def __init__(self, config: TrialConfig, images: TaskImages, device: torch.device) -> None:
        section = section_of(config)
        self.config = config
        self.images = images
        self.device = device
        self.rules = RULES[section.variant]
        self.normal, self.seen = batch_parts(config)
        # upright: of all that images may go through, they move alone
        self._moves = AugmentConfig(rotation="none", shift=section.shift)
        self._jitter = section.jitter

    @property
    def size(self) -> int:
        """Images of a batch."""
        return self.normal * (1 + len(self.rules)) + self.seen

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, S, S], class after class, and their labels [B] on the device."""
        seed, classes = self.config.seed, 1 + len(self.rules)
        parts = [self._drawn(self.images.normals, self.normal, number, "normal")] * classes
        if self.seen:
            parts.append(self._drawn(self.images.anomalies, self.seen, number, "seen"))
        labels = torch.cat([torch.full((len(part),), label) for label, part in enumerate(parts)])
        if self.config.data.shuffle_labels:
            labels = labels[torch.randperm(len(labels), generator=stream(seed, "shuffle", number))]
        moved, _ = changed(torch.cat(parts), self._moves, seed, "moves", number)
        copies = list(moved.split([len(part) for part in parts]))
        for place, rule in enumerate(self.rules, start=1):
            copies[place] = self.pasted(copies[place], rule, number).images
        return normalise(self._coloured(torch.cat(copies), number)), to_device(labels, self.device)

    def pasted(self, pixels: Tensor, rule: Rule, number: int) -> Cut:
        """Pixels [N, 3, S, S] in [0, 1] with a patch or a scar of themselves, as batch `number` draws it."""
        generator = stream(self.config.seed, "cut", rule, number)
        return cutpaste(pixels, pixels, AugmentConfig(kind="cutpaste", cutpaste=rule), generator)

    def views(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What is pasted into uint8 images [N, S, S, 3] for each class: name for people -> pictures of that shape."""
        pixels = to_pixels(images, self.device)
        return {WORDS[rule]: to_images(self.pasted(pixels, rule, 0).images).cpu().numpy() for rule in self.rules}

    def examples(self, normals: np.ndarray) -> list[PseudoExample]:
        """What is pasted into uint8 images [N, S, S, 3]: a patch into the first, a scar into the second, and so on."""
        pixels = to_pixels(normals, self.device)
        cuts = [self.pasted(pixels, rule, 0) for rule in self.rules]
        results = [to_images(cut.images).cpu().numpy() for cut in cuts]
        examples = []
        for row, normal in enumerate(normals):
            rule = row % len(cuts)
            mask = cuts[rule].pasted[row, 0].cpu().numpy()
            examples.append(PseudoExample(normal, normal, None, mask, results[rule][row]))
        return examples

    def _drawn(self, rows: np.ndarray, count: int, number: int, name: str) -> Tensor:
        """`count` of these rows, all in turn before one comes again: [count, 3, S, S] in [0, 1]."""
        chosen = rows[endless(len(rows), count, number, self.config.seed, name)]
        return to_pixels(self.images.take(chosen), self.device, self.config.runtime.channels_last)

    def _coloured(self, pixels: Tensor, number: int) -> Tensor:
        if not self._jitter:
            return pixels
        everywhere = torch.ones_like(pixels[:, :1], dtype=torch.bool)
        drawn = draw_jitter(len(pixels), self._jitter, stream(self.config.seed, "jitter", number))
        return jitter_colours(pixels, everywhere, drawn)
