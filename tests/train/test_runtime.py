"""Switches of a trial: those of torch as asked for, without the seconds that importing its compiler takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from sctune.config import RuntimeConfig
from sctune.errors import PlaceError
from sctune.train.runtime import apply_runtime, check_precision

STARTED = """
import json, sys
import torch
from sctune.config import RuntimeConfig
from sctune.train.runtime import apply_runtime

apply_runtime(RuntimeConfig())
print(json.dumps(["torch._dynamo" in sys.modules, torch.are_deterministic_algorithms_enabled()]))
"""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    apply_runtime(RuntimeConfig())


def test_a_start_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, True]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_trial_leaves_no_switch_to_the_next(deterministic: bool, compiled: bool) -> None:
    apply_runtime(RuntimeConfig(deterministic=not deterministic, compile=compiled))
    apply_runtime(RuntimeConfig(deterministic=deterministic, compile=compiled))
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    if deterministic:
        # an operation without such a kernel warns
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.benchmark is not deterministic
    if compiled:
        from torch._inductor import config

        assert config.deterministic is deterministic


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_needs_a_card_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.version, "hip", None)
    cuda, asked = torch.device("cuda"), RuntimeConfig(precision="bf16")
    if has:
        check_precision(asked, cuda)
    else:
        with pytest.raises(PlaceError, match=r"Tesla T4 \(compute capability 7.5\) has no bfloat16"):
            check_precision(asked, cuda)
    # the CPU has it, if slowly; and nothing else asks
    check_precision(asked, torch.device("cpu"))
    check_precision(RuntimeConfig(precision="tf32"), cuda)
