"""Deviation loss against the public code's value and hand calculations."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sctune.data.batches import stream
from sctune.methods.deviation.loss import deviation_loss, deviation_losses

GOLDEN = Path(__file__).parents[1] / "golden" / "loss_public.npz"


def test_public_value():
    arrays = {name: torch.from_numpy(np.asarray(array)) for name, array in np.load(GOLDEN).items()}
    loss = deviation_loss(arrays["score"], arrays["target"])
    assert loss.item() == pytest.approx(arrays["loss_exact_prior"].item(), abs=1e-5)


def test_by_hand():
    losses = deviation_losses(torch.tensor([-2.0, 3.0, 7.0, 0.5]), torch.tensor([0.0, 1.0, 1.0, 1.0]), margin=4.0)
    assert losses.tolist() == pytest.approx([2.0, 1.0, 0.0, 3.5])


def test_sampled_prior_is_near_the_exact_one_and_seeded():
    score, target = torch.linspace(0, 6, 32), (torch.arange(32) % 2).float()
    exact = deviation_loss(score, target).item()
    sampled = [deviation_loss(score, target, prior="sampled", generator=stream(s, "p")).item() for s in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert sampled[0] == pytest.approx(exact, rel=0.05) and sampled[0] != exact
