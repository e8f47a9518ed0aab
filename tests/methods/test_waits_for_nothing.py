"""A step of training waits for nothing that a GPU computes, and copies nothing to it that it would wait for.

On a CPU the meta device stands for a GPU: it holds no values, so whatever reads one raises, and a mode sees each copy
to it. With a real GPU torch itself says where it waited.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sctune.config import TrialConfig
from sctune.data.batches import NORMAL, PSEUDO, draw_slots
from sctune.data.transfer import rows_on, to_device, to_like
from sctune.methods.base import Method, TaskImages
from sctune.methods.cutpaste.method import CutPasteMethod
from sctune.methods.deviation.method import DeviationMethod
from sctune.methods.kdad.method import KdadMethod
from sctune.methods.pixels import normalise
from sctune.methods.registry import fresh_method

META = torch.device("meta")
NOISE = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
IMAGES = TaskImages(NOISE, np.arange(14), np.arange(14, 18))


class Watch(TorchDispatchMode):
    """Raises where values of the CPU go to the meta device and the process would wait for the copy."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [one for one in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        here = [one for one in tensors if one.device.type == "cpu" and one.dim()]
        there = any(one.device.type == "meta" for one in tensors)
        if name == "_to_copy":
            there = torch.device(kwargs.get("device") or "cpu").type == "meta"
            waits = bool(here) and there and not kwargs.get("non_blocking")
        elif name == "copy_":
            waits = bool(here) and there and not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        else:
            # rows of the CPU are copied by the operation itself
            waits = bool(here) and there
        assert not waits, f"{func} waits for a copy"
        return func(*args, **kwargs)


CONFIGURATIONS: dict[str, dict[str, object]] = {
    "none": {"augment.kind": "none"},
    "cutmix": {"augment.kind": "cutmix"},
    "cutpaste": {"augment.kind": "cutpaste", "augment.cutpaste": "union"},
    "saliencycut": {},
    "drop": {"augment.on_flat": "drop"},
    "changes": {"augment.rotation": "quarter", "augment.flip": "both", "augment.shift": 0.1, "augment.contrast": 0.1},
    "latent": {"model.heads": "four_head", "augment.kind": "cutmix"},
    "latent saliency": {"model.heads": "two_head_latent"},
    "averaged": {"augment.kind": "none", "optim.average": "ema"},
    "per sample": {"augment.kind": "none", "model.patch_per_sample": True},
    "sampled prior": {"augment.kind": "none", "loss.prior": "sampled"},
    "area": {"augment.threshold_mode": "area", "augment.region": "salient"},
    "colours": {"augment.kind": "none", "augment.rotation": "none", "augment.brightness": 0.1},
    "shuffled": {"data.shuffle_labels": True},
    "bank": {"augment.refresh": "epoch"},
    "mlep": {"method.name": "mlep"},
    "saoe": {"method.name": "saoe", "method.members": "cutpaste,confetti"},
    "ssm": {"method.name": "ssm", "method.width": 2},
    "cutpaste method": {"method.name": "cutpaste", "method.total_updates": 2},
    "kdad": {"method.name": "kdad", "method.total_updates": 4},
}


def method_of(tiny: TrialConfig, fields: dict[str, object], device: torch.device) -> Method:
    method = fresh_method(tiny.override({"budget.iterations": 2, **fields}), device)
    method.prepare(IMAGES)
    return method


def run_steps(method: Any, numbers: range) -> None:
    """The updates of these numbers, without what an epoch does around them."""
    if isinstance(method, DeviationMethod):
        method.detector.train()
        for number in numbers:
            method._run_step(number)
    elif isinstance(method, KdadMethod):
        method.pair.cloner.train()
        # the source's maps are looked at once in a training, and kept in the machine's memory
        places = next(method.training.batches(0))
        for _ in numbers:
            method.training.run(places)
    elif isinstance(method, CutPasteMethod):
        for number in numbers:
            method.training.update(number)
    else:
        for number in numbers:
            method.step(number)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_steps_read_nothing_back(tiny: TrialConfig, name: str) -> None:
    method: Any = method_of(tiny, CONFIGURATIONS[name], META)
    if isinstance(method, KdadMethod):
        dimension = method.pair.dimension
        method.training.kept._look = lambda images: np.zeros((len(images), dimension), np.float32)
    with Watch():
        if isinstance(method, DeviationMethod):
            method.step.start_epoch(0)
        run_steps(method, range(2))


def test_the_watch_sees_what_waits() -> None:
    there = torch.zeros(4, 2, device=META)
    rows = torch.tensor([1, 2])
    with Watch():
        to_device(rows, META)
        to_like(torch.rand(4, 2), there)
        there[rows_on(np.array([1, 2]), META)] += 1
        normalise(torch.zeros(1, 3, 8, 8, device=META))
        with pytest.raises(AssertionError, match="waits"):
            rows.to(META)
        with pytest.raises(AssertionError, match="waits"):
            there[rows]
        with pytest.raises(AssertionError, match="waits"):
            there.copy_(torch.rand(4, 2))
        with pytest.raises((NotImplementedError, RuntimeError)):
            there.cpu()
        with pytest.raises((NotImplementedError, RuntimeError)):
            float(there.sum())
        with pytest.raises((NotImplementedError, RuntimeError)):
            there[there > 0]


def test_on_a_cpu_values_stay_what_they_are() -> None:
    values = torch.rand(3, dtype=torch.float64)
    assert to_device(values, torch.device("cpu")) is values
    assert to_like(values, torch.zeros(1)).dtype == torch.float32
    assert rows_on(np.array([2, 0])[::-1], torch.device("cpu")).tolist() == [0, 2]


@pytest.mark.parametrize("refresh", ["iteration", "epoch"])
def test_slots_that_got_no_pseudo_anomaly_are_normal(tiny: TrialConfig, refresh: str) -> None:
    """Of donors whose saliency is constant, which is known on their device only."""
    fields: dict[str, object] = {"augment.on_flat": "drop", "augment.refresh": refresh, "budget.iterations": 8}
    method: Any = method_of(tiny, fields, torch.device("cpu"))
    pseudo, seen = method.step.pseudo, []

    def saliency(images: Any, number: int) -> Any:
        flat = (torch.arange(len(images)) + number) % 2 == 0
        gradient = torch.where(flat[:, None, None, None], 0, torch.rand(images.shape))
        seen.append(flat)
        return gradient, torch.zeros(len(images), dtype=torch.bool)

    pseudo.saliency = saliency
    method.step.start_epoch(0)
    labels = []
    for number in range(6):
        seen.clear()
        slots = draw_slots(14, 4, tiny.normal_slots, tiny.budget.batch_size, number, tiny.seed, True, False)
        batch = method.step.batch(number)
        kept = slots.labels != PSEUDO
        assert batch.labels[torch.from_numpy(kept)].tolist() == slots.labels[kept].tolist()
        made = batch.labels[torch.from_numpy(~kept)].tolist()
        labels += made
        if refresh == "iteration" and len(slots.donors):
            _, back = np.unique(slots.donors, return_inverse=True)
            assert made == [NORMAL if seen[0][place] else PSEUDO for place in back]
    assert set(labels) == {NORMAL, PSEUDO}


@contextmanager
def sync_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_on_a_gpu_wait_for_nothing(tiny: TrialConfig, name: str, precision: str) -> None:
    fields = {**CONFIGURATIONS[name], "runtime.device": "cuda", "runtime.precision": precision}
    method: Any = method_of(tiny, fields, torch.device("cuda"))
    if isinstance(method, DeviationMethod):
        method.step.start_epoch(0)
    # the first steps make handles and moments
    run_steps(method, range(2))
    torch.cuda.synchronize()
    with sync_is_an_error():
        run_steps(method, range(2, 4))
