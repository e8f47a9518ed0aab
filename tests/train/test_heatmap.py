"""Heat maps agree with the scores that they explain, leave the detector as it was, and are measured by AUPRO."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sctune.errors import DataError
from sctune.methods.deviation.heads import LatentResidualHead, PatchResidualHead, PlainHead, top_k_mean
from sctune.methods.deviation.heatmap import head_cells
from sctune.metrics.pixel_level import aupro
from sctune.train.heatmap import KINDS, heat_maps, scaled
from tests.models import small_config, small_method


def images(count: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.mark.parametrize("heads", ["two_head_patch", "two_head_latent", "four_head", "single_head"])
@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_all_heads(heads: str, kind: str) -> None:
    method = small_method(small_config(model__heads=heads))
    detector = method.detector
    if detector.needs_references:
        detector.set_references(images(detector.config.model.reference_count))
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    maps = heat_maps(method, images(5), kind, batch_size=2)
    assert (
        maps is not None
        and maps.shape == (5, 64, 64)
        and np.isfinite(maps).all()
        and (np.ptp(maps, axis=(1, 2)) > 0).all()
    )
    # what is beside an image does not change its map, but for rounding: batches are folded
    alone = heat_maps(method, images(5)[3:4], kind)
    assert alone is not None
    np.testing.assert_allclose(alone, maps[3:4], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in detector.parameters())
    assert not detector.training


def test_the_cells_of_a_head_are_what_its_score_is_made_of() -> None:
    torch.manual_seed(0)
    features, reference = torch.randn(3, 8, 6, 6), torch.randn(1, 8, 6, 6)
    plain, latent = PlainHead(8, 0.2).eval(), LatentResidualHead(8, 0.2).eval()
    with torch.inference_mode():
        assert torch.allclose(top_k_mean(head_cells(plain, features).flatten(1), 0.2), plain(features))
        cells = head_cells(latent, features, reference).flatten(1)
        assert torch.allclose(top_k_mean(cells, 0.2), latent(features, reference))


def test_a_patch_head_points_at_the_cell_that_differs() -> None:
    torch.manual_seed(0)
    head = PatchResidualHead(8, patch_count=2, place="grid2d", patch_size="half").eval()
    features = torch.zeros(1, 8, 6, 6)
    features[0, :, 1, 4] = 30.0
    with torch.inference_mode():
        cells = head_cells(head, features)[0]
        flat = head_cells(head, torch.zeros(1, 8, 6, 6))[0]
    moved = (cells - flat).abs()
    # everything further away than the convolution reaches says less
    row, column = divmod(int(moved.argmax()), 6)
    assert abs(row - 1) <= 1 and abs(column - 4) <= 1
    assert moved[4:, :2].max() < moved.max() / 4


def test_scaling_ends_at_zero_and_one() -> None:
    maps = np.stack([np.arange(9, dtype=np.float32).reshape(3, 3), np.full((3, 3), 7, np.float32)])
    found = scaled(maps)
    assert (found[0].min(), found[0].max()) == (0.0, 1.0)
    assert (found[1] == 0).all()


def brute_aupro(masks: np.ndarray, maps: np.ndarray, regions: list[tuple[int, np.ndarray]], limit: float) -> float:
    """Every threshold in turn, the curve joined by straight lines."""
    points = [(0.0, 0.0)]
    for cut in sorted(np.unique(maps), reverse=True):
        false = (maps[~masks] >= cut).mean()
        overlap = np.mean([(maps[number][region] >= cut).mean() for number, region in regions])
        points.append((float(false), float(overlap)))
    rates, overlaps = np.array(points).T
    grid = np.linspace(0, limit, 20001)
    return float(np.trapezoid(np.interp(grid, rates, overlaps), grid) / limit)


def test_aupro_is_that_of_all_thresholds() -> None:
    random = np.random.default_rng(5)
    masks = np.zeros((2, 40, 40), bool)
    masks[0, 3:9, 3:9] = masks[0, 20:30, 25:28] = masks[1, 30:36, 2:20] = True
    maps = random.random((2, 40, 40)).astype(np.float32)
    maps[masks] += 0.6 * random.random(int(masks.sum())).astype(np.float32)
    first = np.zeros((40, 40), bool)
    first[3:9, 3:9] = True
    regions = [(0, first), (0, masks[0] & ~first), (1, masks[1])]
    assert aupro(masks, maps) == pytest.approx(brute_aupro(masks, maps, regions, 0.3), abs=0.01)


def test_aupro_of_the_best_and_the_worst_map() -> None:
    masks = np.zeros((1, 20, 20), bool)
    masks[0, 5:8, 5:8] = True
    assert aupro(masks, masks.astype(np.float32)) == pytest.approx(1.0)
    assert aupro(masks, 1 - masks.astype(np.float32)) == 0.0
    # a small defect that is missed costs as much as a large one
    masks[0, 15, 15] = True
    only_large = masks.astype(np.float32)
    only_large[0, 15, 15] = -1
    assert aupro(masks, only_large) == pytest.approx(0.5)
    with pytest.raises(DataError):
        aupro(np.zeros((1, 4, 4), bool), np.zeros((1, 4, 4), np.float32))
