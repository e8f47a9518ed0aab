"""What a search takes beside its trials' epochs: time at its start and its end, and files beside the checkpoints.

What can be worked out is: copies of the weights, images, trials. The rest was measured on 2026-11-29 with searches of
profile `smoke` on ELPV (4 trials, 1317 development images, 64 px, a local MLflow), on a shared virtual machine with
2 cores of an AMD EPYC, 23 GiB and no GPU.
"""

from __future__ import annotations

from sctune.backbones.registry import backbone_entry
from sctune.config import TrialConfig

WORKERS_S = 15.0
"""From the launch until the first trials begin: Ray starts their workers, which import torch and sctune."""
TRIAL_S = 1.5
"""A trial in a worker that is there: reset, model and images."""
END_S = 14.0
"""Figures, pictures of the best trial, registering its model, the end of the workers; without scoring."""

SLOW_CORE = 2e9
"""Multiply-adds of backbones that a slow or busy core makes in a second of a trial; two free cores made 7e9 each, in
trials of profile `cpu` of 108 s."""

FIGURES_BYTES = 19_400_000
"""Figures and tables of a study, four of them with plotly.js inside; twice: its folder and its run."""
PICTURES_BYTES = 560_000
"""Pictures and papers of the best trial; twice: the study's folder and the trial's run."""
WHEEL_BYTES = 660_000
"""The package inside the registered model."""
STORES_BYTES = 1_100_000
"""The record and MLflow's database with nothing in them."""
TRIAL_BYTES = 30_000
"""Rows and logs of a trial in both."""
EPOCH_BYTES = 4_000
"""Rows of an epoch in both, and its events."""
IMAGE_BYTES = 300
"""Digest and calibration of a development image: three copies of the model, and files.json."""

WEIGHTS_COPIES = 3
"""The study's folder, the best trial's run, the registered model."""


def slow_trial_s(config: TrialConfig, scored: int) -> float:
    """About how many seconds a trial takes on one task and a slow core, from its images alone.

    scored: images, after each epoch.
    """
    total = getattr(config.method, "total_updates", None)
    # of one that goes over the normal images: as many as a budget has
    steps = total if isinstance(total, int) else config.epochs * config.budget.iterations
    images = steps * config.budget.batch_size + config.epochs * scored
    macs = 1000 * backbone_entry(config.model.backbone).cost * config.data.image_size**2
    return TRIAL_S + images * macs / SLOW_CORE


def files_bytes(weights: int, trials: int, epochs: int, images: int) -> int:
    """Bytes of all that a finished search leaves beside its checkpoints, with MLflow's copies.

    weights: bytes of the detector's state; epochs: of each trial; images: of the development pool.
    """
    return (
        2 * (FIGURES_BYTES + PICTURES_BYTES)
        + WEIGHTS_COPIES * weights
        + WHEEL_BYTES
        + STORES_BYTES
        + trials * (TRIAL_BYTES + epochs * EPOCH_BYTES)
        + images * IMAGE_BYTES
    )
