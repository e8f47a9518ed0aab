"""Saliency maps against the public code's arrays and the properties of the aligned kernel."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sctune.augment.saliency import min_max, salient_mask, smooth_map, smooth_saliency, spline_matrix

GOLDEN = Path(__file__).parents[1] / "golden" / "saliency_public.npz"


@pytest.mark.parametrize("case", ["64_8", "96_18", "112_14"])
def test_official_kernel_gives_the_public_maps(case):
    arrays = np.load(GOLDEN)
    gradient = torch.from_numpy(arrays[f"grad_{case}"])
    saliency = smooth_saliency(gradient, int(case.split("_")[1]), kernel="official")
    assert torch.allclose(saliency, torch.from_numpy(arrays[f"saliency_{case}"]), atol=1e-5)


@pytest.mark.parametrize(("size", "grid"), [(64, 2), (64, 7), (96, 18), (160, 18), (448, 18), (448, 6), (100, 50)])
def test_aligned_kernel_keeps_constants_and_places(size, grid):
    matrix = spline_matrix(size, grid, "aligned")
    assert matrix.shape == (size, grid)
    assert torch.allclose(matrix.sum(1), torch.ones(size, dtype=torch.float64))
    assert torch.allclose(matrix, matrix.flip(0, 1), atol=1e-12)
    for cell in range(2, grid - 2):
        centre = (matrix[:, cell] * torch.arange(size)).sum() / matrix[:, cell].sum()
        assert centre.item() == pytest.approx((cell + 0.5) * size / grid - 0.5, abs=0.02)


def test_official_kernel_fades_at_the_border():
    matrix = spline_matrix(448, 18, "official")
    rows = matrix.sum(1)
    assert rows[224].item() == pytest.approx(1.0)
    assert rows[0].item() == pytest.approx(0.865, abs=0.002)


def test_norm_over_channels_and_scaling():
    gradient = torch.zeros(1, 3, 32, 32)
    gradient[:, 0, :16], gradient[:, 1, :16] = 3, 4
    cells = smooth_map(gradient, 2)
    assert cells.max().item() == pytest.approx(5.0, abs=1e-4)
    saliency = smooth_saliency(gradient, 2)
    assert saliency.min().item() == 0 and saliency.max().item() == 1
    assert saliency[0, 0, 0, 0] > saliency[0, 0, 31, 0]


def test_constant_map_is_flagged():
    maps = torch.stack([torch.zeros(1, 8, 8), torch.arange(64.0).view(1, 8, 8)])
    scaled, flat = min_max(maps)
    assert flat.tolist() == [True, False]
    assert (scaled[0] == 1).all() and scaled[1].max() == 1 and scaled[1].min() == 0


@pytest.mark.parametrize("grid", [1, 17])
def test_impossible_grid_is_refused(grid):
    with pytest.raises(ValueError, match=f"grid_size={grid}"):
        smooth_saliency(torch.rand(1, 3, 32, 32), grid)


def test_value_threshold_is_strict():
    saliency = torch.tensor([0.0, 0.4, 0.41, 1.0]).view(1, 1, 2, 2)
    assert salient_mask(saliency, 0.4).flatten().tolist() == [False, False, True, True]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.8, 1.0])
@pytest.mark.parametrize("region", ["nonsalient", "salient"])
def test_area_threshold_sets_the_pasted_share(share, region):
    saliency = torch.rand(3, 1, 20, 20)
    salient = salient_mask(saliency, share, "area", region)
    pasted = salient if region == "salient" else ~salient
    assert pasted.float().mean(dim=(1, 2, 3)).tolist() == pytest.approx([share] * 3, abs=1e-6)
