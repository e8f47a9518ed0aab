"""Memory that really runs out, of the machine and of a GPU, ends a trial's step with that kind of failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sctune.config import Task, TrialConfig
from sctune.trial.building import TrialSpec
from sctune.trial.trainable import SaliencyCutTrainable

PETABYTE = 1 << 50


def make_trial(tmp_path: Path, device: str) -> SaliencyCutTrainable:
    """A trial that asks for more memory than there is when it is built."""

    class Greedy(SaliencyCutTrainable):
        def _build(self, course: Any) -> Any:
            torch.empty(PETABYTE, dtype=torch.uint8, device=device)

    spec = TrialSpec(
        config=TrialConfig().model_dump(),
        tasks=[Task()],
        storage=str(tmp_path),
        cache=str(tmp_path / "cache"),
        checkpoint_epochs=[],
        checkpoint_interval=60.0,
        splits={},
        weights_sha256={},
        versions={},
    )
    trial: Any = object.__new__(Greedy)
    trial.setup({"number": 0, "params": {}, "attempt": 1}, spec.model_dump())
    return trial  # type: ignore[no-any-return]


def test_memory_of_the_machine(tmp_path: Path) -> None:
    result = make_trial(tmp_path, "cpu").step()
    assert result["failure"].kind == "out of memory"
    assert "Traceback" in result["failure"].traceback
    assert result["done"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_gpu(tmp_path: Path) -> None:
    before = torch.cuda.memory_allocated()
    trial = make_trial(tmp_path, "cuda")
    assert trial.step()["failure"].kind == "out of memory"
    # nothing of it is left for the trial that this worker runs next
    assert torch.cuda.memory_allocated() == before
