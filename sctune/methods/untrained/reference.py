"""What both references do: look at the images once through a frozen backbone, fit, and score."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.backbones.weights import resolve_weights
from sctune.config import TrialConfig
from sctune.data.batches import stream
from sctune.errors import CheckpointError, DataError, NonFiniteError, StoppedError
from sctune.methods.base import Method, Scores, TaskImages
from sctune.methods.pixels import autocast, score_alike, to_pixels
from sctune.methods.untrained.entry import taps_of
from sctune.methods.untrained.extractor import Extractor, build_extractor
from sctune.methods.untrained.store import FeatureStore, Place, image_digest

LEAST_NORMALS = 10
AT_ONCE = 16
"""Images between two questions whether to stop."""

NETWORK, FIT = "network.", "fit."
"""Begin the names of the backbone's tensors, and of what was fitted, in a state."""

Ask = Callable[[], None]
"""Raises StoppedError where the fit is to end."""


@dataclass(frozen=True)
class Picked:
    """Some rows of an array of images on disk, read when they are asked for."""

    array: np.ndarray
    rows: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: slice | NDArray[np.intp]) -> np.ndarray:
        images: np.ndarray = self.array[self.rows[places]]
        return images


Images = np.ndarray | Picked
"""uint8 images [N, S, S, 3]."""


class PixelScore(nn.Module):
    """Pixels [N, 3, S, S] in [0, 1] -> scores [N]: a copy on the CPU."""

    def __init__(self, extractor: Extractor, model: nn.Module) -> None:
        super().__init__()
        self.extractor = copy.deepcopy(extractor).cpu().to(memory_format=torch.contiguous_format)
        self.model = copy.deepcopy(model).cpu()

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.model(self.extractor(pixels))
        return scores.float()


class Reference(Method):
    """A frozen backbone and what was fitted to its features in the only epoch.

    The fit depends on the images and the seed, not on the order of the files.
    """

    extractor_kind: ClassVar[type[Extractor]]
    place: ClassVar[Place]
    """Where features are kept for other processes."""

    def __init__(self, config: TrialConfig, device: torch.device, extractor: Extractor) -> None:
        super().__init__(config, device)
        self.extractor = extractor.to(device)
        self.model: nn.Module | None = None
        self._images: TaskImages | None = None
        self._store: FeatureStore | None = None
        self._shapes: dict[int, list[torch.Size]] = {}

    @classmethod
    def fresh(cls, config: TrialConfig, device: torch.device, weights: Path | None = None) -> Self:
        if weights is None:
            weights = resolve_weights(config.model.backbone, config.model.weights)
        with torch.random.fork_rng(devices=[]):
            # for random weights
            torch.manual_seed(config.seed)
            return cls(config, device, cls._extractor(config, weights))

    @classmethod
    def trained(cls, config: TrialConfig, device: torch.device, tensors: Mapping[str, Tensor]) -> Self:
        method = cls(config, device, cls._extractor(config, None))
        method.load_model_state(tensors)
        return method

    @classmethod
    def _extractor(cls, config: TrialConfig, weights: Path | None) -> Extractor:
        return build_extractor(cls.extractor_kind, config.model.backbone, taps_of(config), weights)

    def prepare(self, images: TaskImages) -> None:
        if len(images.normals) < LEAST_NORMALS:
            raise DataError(
                f"method {self.config.method.name} needs {LEAST_NORMALS} normal training images at least, and "
                f"{len(images.normals)} are there; add images"
            )
        self._images = images
        # a model that only scores sees each image once, and keeps nothing
        self._store = self._store_for(images)

    def run_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        if self._images is None:
            raise ValueError("the method has no images to fit; call prepare first")

        def ask() -> None:
            if should_stop():
                raise StoppedError(f"stopped in epoch {epoch + 1}")

        normals = self._drawn(self._images)
        array = self._images.array
        anomalies = self._ordered(array, self._images.anomalies)
        self.model, figures = self.fit(Picked(array, normals), Picked(array, anomalies), ask)
        self.model.to(self.device).requires_grad_(False).eval()
        wrong = [name for name, value in self.model.state_dict().items() if not bool(torch.isfinite(value).all())]
        if wrong:
            raise NonFiniteError(f"the fit of {self.config.method.name} gave values that are no numbers ({wrong[0]})")
        return {"normals": float(len(normals)), **figures}

    @abstractmethod
    def fit(self, normals: Images, anomalies: Images, ask: Ask) -> tuple[nn.Module, dict[str, float]]:
        """The module from features [N, ...] to scores [N], and figures about it.

        Raises DataError for images that cannot be fitted.
        """

    @abstractmethod
    def blank(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """What `fit` gives, for tensors of these shapes; raises LookupError, ValueError where one is missing."""

    def score(self, images: np.ndarray) -> Scores:
        parts = [self._scores(part) for part in self.walk(images)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def by_share(self, images: np.ndarray, shares: Sequence[float]) -> Scores:
        """Scores [K, N] with each of K shares of the highest cells; where no cells are scored they are the same."""
        return np.tile(self.score(images), (len(shares), 1))

    def model_state(self) -> dict[str, Tensor]:
        network = {f"{NETWORK}{name}": value for name, value in self.extractor.state_dict().items()}
        fitted = {} if self.model is None else self.model.state_dict()
        return network | {f"{FIT}{name}": value for name, value in fitted.items()}

    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None:
        fitted = _named(tensors, FIT)
        try:
            self.extractor.load_state_dict(_named(tensors, NETWORK))
            model = self.blank(fitted) if fitted else None
            if model is not None:
                model.load_state_dict(fitted)
        except (RuntimeError, LookupError, ValueError) as problem:
            line = str(problem).splitlines()[-1].strip()
            raise CheckpointError(f"the model is none of method {self.config.method.name}: {line}") from None
        self.model = None if model is None else model.to(self.device).requires_grad_(False).eval()
        if self._images is not None:
            self._store = self._store_for(self._images)

    def module(self) -> nn.Module:
        return PixelScore(self.extractor, self.fitted).requires_grad_(False).eval()

    def embed(self, images: np.ndarray) -> NDArray[np.float32] | None:
        rows = [self.extractor.pooled(torch.from_numpy(part)).numpy() for part in self.walk(images)]
        return np.concatenate(rows) if rows else None

    @property
    def images_per_epoch(self) -> int:
        held = self._images
        return 0 if held is None else min(len(held.normals), self._most) + len(held.anomalies)

    @property
    def fitted(self) -> nn.Module:
        """Raises ValueError before the only epoch."""
        if self.model is None:
            raise ValueError("the method has seen no images yet; run its epoch first")
        return self.model

    def walk(self, images: Images, ask: Ask = lambda: None) -> Iterator[NDArray[np.float32]]:
        """Features of a few uint8 images [N, S, S, 3] at a time."""
        for start in range(0, len(images), AT_ONCE):
            ask()
            part = images[start : start + AT_ONCE]
            rows = self._kept(part) if self._store is None else self._store.of(part, self._kept)
            yield self._opened(rows, part.shape[1])

    def keeps(self, images: TaskImages, size: int) -> bool:
        """Whether other processes get the features of these images, so many bytes each."""
        return self.place.takes(len(images.array), size)

    def _features(self, images: np.ndarray) -> NDArray[np.float32]:
        return self._opened(self._kept(images), images.shape[1])

    def _kept(self, images: np.ndarray) -> NDArray[np.float32]:
        return score_alike(self._extract, images, self.device)

    def _opened(self, rows: NDArray[np.float32], side: int) -> NDArray[np.float32]:
        """On the CPU, whatever made the rows, and of one image after the other: the same numbers wherever they lay."""
        shapes = self._parts(side)
        opened = [self.extractor.opened(torch.from_numpy(row[None]), shapes).numpy() for row in rows]
        return np.concatenate(opened)

    def _extract(self, images: np.ndarray, batch_size: int) -> NDArray[np.float32]:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                pixels = to_pixels(images[start : start + batch_size], self.device, self.config.runtime.channels_last)
                with autocast(self.config.runtime, self.device):
                    parts.append(self.extractor.kept(pixels).float().cpu().numpy())
        return np.concatenate(parts)

    def _scores(self, features: NDArray[np.float32]) -> Scores:
        with torch.inference_mode():
            # one by one: sums of floats depend on the size of a batch
            rows = [self.fitted(torch.from_numpy(one[None]).to(self.device)) for one in features]
            return torch.cat(rows).double().cpu().numpy()

    @property
    def _most(self) -> int:
        return int(self.config.method.model_dump()["max_normals"])

    def _drawn(self, images: TaskImages) -> NDArray[np.intp]:
        """Rows of at most `max_normals` normals, in an order of their content."""
        rows = self._ordered(images.array, images.normals)
        if len(rows) <= self._most:
            return rows
        order = torch.randperm(len(rows), generator=stream(self.config.seed, "normals")).numpy()
        return rows[np.sort(order[: self._most])]

    @staticmethod
    def _ordered(array: np.ndarray, rows: np.ndarray) -> NDArray[np.intp]:
        return np.array(sorted(rows, key=lambda row: image_digest(array[row])), np.intp)

    def _store_for(self, images: TaskImages) -> FeatureStore:
        count = sum(shape.numel() for shape in self._parts(images.array.shape[1]))
        size = count * np.dtype(np.float32).itemsize
        return FeatureStore(self._digest(), (count,), self.place if self.keeps(images, size) else None)

    def _parts(self, side: int) -> list[torch.Size]:
        """Shapes of the parts of an image of this side."""
        if side not in self._shapes:
            with torch.inference_mode():
                maps = self.extractor.maps(torch.zeros(1, 3, side, side, device=self.device))
                self._shapes[side] = [self.extractor.part(one).shape[1:] for one in maps]
        return self._shapes[side]

    def _digest(self) -> str:
        runtime = self.config.runtime
        how = [self.extractor.digest, self.device.type, runtime.precision, runtime.channels_last, torch.__version__]
        return hashlib.sha256(json.dumps(how).encode()).hexdigest()


def raised(cells: Tensor, size: int) -> Tensor:
    """Values [N, H, W] of cells where they lie in the image: [N, size, size]."""
    return nn.functional.interpolate(cells[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
