"""Switches of a trial: those of torch as asked for, without the seconds that importing its compiler takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from sctune.config import RuntimeConfig
from sctune.train.runtime import apply_runtime

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
