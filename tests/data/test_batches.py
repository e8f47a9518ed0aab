"""Batches: the slot rule, endless permutations, and rotation against torchvision."""

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import rotate as reference_rotate

from sctune.data.batches import NORMAL, PSEUDO, SEEN, draw_slots, endless, rotate, rotation_angles, stream


def slots(step, n_normal=50, n_anomalous=4, normal_slots=12, batch=18, seed=7, pseudo=True, allow_self=False):
    return draw_slots(n_normal, n_anomalous, normal_slots, batch, step, seed, pseudo, allow_self)


def test_slot_rule():
    drawn = [slots(step) for step in range(200)]
    assert all((s.labels[12:] == SEEN).all() and (s.labels[:12] != SEEN).all() for s in drawn)
    share = np.mean([(s.labels[:12] == PSEUDO).mean() for s in drawn])
    assert share == pytest.approx(0.5, abs=0.03)
    for s in drawn:
        assert len(s.donors) == (s.labels == PSEUDO).sum()
        assert (s.labels[s.donors] == NORMAL).all()


def test_anomaly_free_batches_hold_normal_slots_only():
    s = slots(0, n_anomalous=0, normal_slots=18)
    assert len(s.labels) == 18 and SEEN not in s.labels


def test_one_slot_always_stays_normal():
    assert all((slots(step, normal_slots=2, batch=3).labels == NORMAL).any() for step in range(100))


def test_no_donor_is_its_own_receiver():
    for step in range(100):
        s = slots(step, n_normal=6)
        receivers = s.index[:12][s.labels[:12] == PSEUDO]
        others = [set(s.index[:12][s.labels[:12] == NORMAL]) - {r} for r in receivers]
        same = s.index[s.donors] == receivers
        assert not any(same & np.array([bool(o) for o in others]))
    free = [slots(step, n_normal=6, allow_self=True) for step in range(100)]
    assert any((s.index[s.donors] == s.index[:12][s.labels[:12] == PSEUDO]).any() for s in free)


def test_endless_sequence_shows_every_item_once_per_turn():
    sequence = np.concatenate([endless(7, 3, step, 1, "x") for step in range(14)])
    turns = sequence.reshape(6, 7)
    assert all(sorted(turn) == list(range(7)) for turn in turns.tolist())
    assert len({tuple(turn) for turn in turns.tolist()}) > 1


def test_same_seed_and_step_give_the_same_batch():
    one, same, other, later = slots(3), slots(3), slots(3, seed=8), slots(4)
    assert all(np.array_equal(getattr(one, f), getattr(same, f)) for f in ("labels", "index", "donors"))
    assert not np.array_equal(one.index, other.index) and not np.array_equal(one.index, later.index)


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (24, 40)])
def test_rotation_equals_torchvision_image_by_image(size):
    images = torch.rand(5, 3, *size)
    angles = torch.tensor([0.0, 17.0, -120.0, 90.0, 180.0])
    turned, valid = rotate(images, angles)
    for image, angle, result, real in zip(images, angles, turned, valid, strict=True):
        expected = reference_rotate(image, angle.item())
        # pixels exactly between two centres may round either way
        assert (result - expected).abs().gt(1e-6).float().mean() < 0.01
        assert ((result == 0).all(0) == ~real[0]).all()
    assert valid[0].all()


def test_reflected_corners_hold_image_values():
    images = torch.rand(2, 3, 20, 20) + 1
    turned, valid = rotate(images, torch.tensor([45.0, 30.0]), "reflect")
    assert (turned >= 1).all() and not valid.all()


def test_angles_are_uniform_in_their_range():
    angles = rotation_angles(4000, 90, stream(0, "a"))
    assert angles.min() < -85 and angles.max() > 85 and angles.abs().max() <= 90
    assert angles.mean().abs() < 3
