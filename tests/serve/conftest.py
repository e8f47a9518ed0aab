"""The small calibrated model that the commands on images are tested with; nothing changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sctune.deploy.model import Model, load_model_folder
from tests.models import write_small_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Model:
    return load_model_folder(model_folder)
