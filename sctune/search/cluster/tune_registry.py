"""Tune's registry of trainables, asked once for each of them.

For every trial Tune asks the cluster's key-value store five times whether it knows the trainable, and which it is:
round trips on the driver's thread that always have the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune.registry import TRAINABLE_CLASS, _global_registry


@contextmanager
def remembered_trainables() -> Iterator[None]:
    """While it lasts, a trainable that the registry has given once is given again without the store."""
    found: dict[str, Any] = {}
    contains, get = _global_registry.contains, _global_registry.get

    def contains_quickly(category: str, key: str) -> bool:
        return (category == TRAINABLE_CLASS and key in found) or bool(contains(category, key))

    def get_quickly(category: str, key: str) -> Any:
        if category != TRAINABLE_CLASS:
            return get(category, key)
        if key not in found:
            found[key] = get(category, key)
        return found[key]

    _global_registry.contains, _global_registry.get = contains_quickly, get_quickly
    try:
        yield
    finally:
        # what was set on the object hides its methods
        del _global_registry.contains, _global_registry.get
