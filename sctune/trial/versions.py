"""What must be the same on the driver and on every worker; light, since every node is asked for it."""

from __future__ import annotations

from importlib.metadata import version

CHECKED_PACKAGES = ("sctune", "torch", "torchvision", "optuna")
"""Packages whose versions must be the same on the driver and on every worker."""


def package_versions() -> dict[str, str]:
    return {name: version(name).split("+")[0] for name in CHECKED_PACKAGES}
