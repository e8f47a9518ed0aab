"""The references, fitted once for the tests of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sctune.config import TrialConfig
from sctune.train.trainer import Trainer

CELLS = "cells"
SMALL_BANK = {"method.bank_size": 90, "method.candidates": 900}


def reference(tiny: TrialConfig, name: str, **values: object) -> TrialConfig:
    """A configuration of a method, or of `cells`: a Gaussian of these. values: `__` in a name stands for a dot."""
    own = {"patch_bank": SMALL_BANK, CELLS: {"method.features": "cells"}}.get(name, {})
    more = {key.replace("__", "."): value for key, value in values.items()}
    return tiny.override({"method.name": "gaussian" if name == CELLS else name, **own, **more})


def fitted(config: TrialConfig, home: Path) -> Trainer:
    """Its whole training; home: root of the caches, since that of the test may not be there yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCTUNE_HOME", str(home))
        trainer = Trainer(config)
        list(trainer.fit())
    return trainer
