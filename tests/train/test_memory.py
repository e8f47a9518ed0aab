"""What a training does to the memory of its process, in a fresh one: mallopt holds until a process ends."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest
import torch

from sctune.config import TrialConfig
from sctune.train import memory
from sctune.train.memory import decided_by_environment, give_memory_back, keep_freed_memory

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
needs_glibc = pytest.mark.skipif(not GLIBC, reason="needs glibc")

TOUCH = """
import json, os, resource, sys
import torch
from pathlib import Path
from sctune.config import TrialConfig
from sctune.train.memory import give_memory_back
from sctune.train.trainer import Trainer

trainer = Trainer(TrialConfig.load(json.load(sys.stdin)))
trainer.selection.evaluate(trainer.method.scorer())

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def pages():
    for _ in range(3):
        torch.ones(2**24)  # 64 MiB; the next ones find a block that they fit into
    before = faults()
    for _ in range(5):
        torch.ones(2**24)
    return faults() - before

found = {"scored": pages()}
trainer.run_epoch()
found |= {"pages": pages(), "kept": resident()}
give_memory_back()
found["given_back"] = found["kept"] - resident()
print(json.dumps(found))
"""


@needs_glibc
def test_a_training_maps_no_tensor_twice_and_the_end_gives_all_back(tiny: TrialConfig) -> None:
    clean = {name: value for name, value in os.environ.items() if not decided_by_environment({name: value})}
    done = subprocess.run(
        [sys.executable, "-c", TOUCH],
        input=tiny.model_dump_json(),
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    # by itself glibc maps every one of the five anew, page by page
    anew = 5 * 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert found["pages"] * 10 < anew
    # a process that only scores is left as it is
    assert found["pages"] * 10 < found["scored"]
    assert found["given_back"] > 50 * 2**20


@needs_glibc
def test_other_devices_and_other_allocators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not keep_freed_memory(torch.device("cuda"))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory(torch.device("cpu"))


class Libc:
    """Stands in for glibc, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def mallopt(self, *_: int) -> int:
        self.asked.append("mallopt")
        return 1

    def malloc_trim(self, _: int) -> int:
        self.asked.append("malloc_trim")
        return 1


def test_only_a_process_that_keeps_memory_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = Libc()
    monkeypatch.setattr(memory, "_glibc", lambda: libc)
    monkeypatch.setattr(memory, "_keeps", False)
    for name in [name for name in os.environ if decided_by_environment({name: os.environ[name]})]:
        monkeypatch.delenv(name)
    give_memory_back()
    assert not keep_freed_memory(torch.device("cuda"))
    give_memory_back()
    assert libc.asked == []
    assert keep_freed_memory(torch.device("cpu"))
    give_memory_back()
    assert libc.asked == ["mallopt", "mallopt", "malloc_trim"]


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory(torch.device("cpu"))
    give_memory_back()


@pytest.mark.parametrize(
    ("environment", "decided"),
    [
        ({}, False),
        ({"MALLOC_ARENA_MAX": "2", "LD_PRELOAD": "/usr/lib/libgomp.so.1"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.rtld.nns=4"}, False),
        ({"GLIBC_TUNABLES": "glibc.rtld.nns=4:glibc.malloc.mmap_threshold=1048576"}, True),
        ({"MALLOC_TOP_PAD_": "0"}, True),
        ({"LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"}, True),
    ],
)
def test_who_decides(environment: dict[str, str], decided: bool) -> None:
    assert decided_by_environment(environment) is decided
