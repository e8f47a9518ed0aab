"""Tune asks for a trainable with every trial; the store behind its registry is asked once."""

from __future__ import annotations

import pytest
from ray import tune
from ray.tune import registry

from sctune.trial.ray_private import remembered_trainables


def test_the_store_is_asked_once_for_a_trainable(monkeypatch: pytest.MonkeyPatch) -> None:
    store: dict[bytes, bytes] = {}
    asked: list[bytes] = []

    def get(key: bytes) -> bytes | None:
        asked.append(key)
        return store.get(key)

    # Tune's own registry over a store in memory: no cluster is needed
    monkeypatch.setattr(registry._global_registry, "_prefix", "job")
    monkeypatch.setattr(registry, "_internal_kv_initialized", lambda: True)
    monkeypatch.setattr(registry, "_internal_kv_get", get)
    monkeypatch.setattr(registry, "_internal_kv_put", lambda key, value, overwrite: store.update({key: value}))
    monkeypatch.setattr(registry, "_internal_kv_del", lambda key: store.pop(key))
    methods = (registry._global_registry.contains, registry._global_registry.get)
    with remembered_trainables():
        registry._global_registry.register(registry.TRAINABLE_CLASS, "sctune-test", tune.Trainable)
        assert registry.get_trainable_cls("sctune-test") is tune.Trainable
        before = len(asked)
        for _ in range(10):
            registry.validate_trainable("sctune-test")
            assert registry.get_trainable_cls("sctune-test") is tune.Trainable
        assert len(asked) == before
        with pytest.raises(tune.TuneError, match="Unknown trainable"):
            registry.validate_trainable("sctune-missing")
    assert (registry._global_registry.contains, registry._global_registry.get) == methods
    registry._global_registry.unregister(registry.TRAINABLE_CLASS, "sctune-test")
