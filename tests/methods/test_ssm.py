"""The parts of SSM against calculations by hand, and second implementations by other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from sctune.config import TrialConfig, load_profile
from sctune.errors import ConfigError
from sctune.methods.named import method_values
from sctune.methods.ssm.entry import ENTRY, SIDE, sides_of
from sctune.methods.ssm.loss import masking_losses, weighted
from sctune.methods.ssm.masks import hide_sets, surely_normal
from sctune.methods.ssm.network import MaskBlock, MaskedUNet, reconstruct
from sctune.methods.ssm.scoring import (
    PUBLISHED_THRESHOLD,
    ErrorScore,
    cell_shares,
    images_at_once,
    scoring_masks,
    shrinking,
)
from sctune.methods.ssm.similarity import dissimilarities, error_map, gms_loss, gradients, median, ssim_loss
from sctune.search.plan.base import base_config, search_space
from sctune.search.plan.options import SearchOptions
from sctune.search.space.definition import load_space
from tests.builders import make_space


def ssm(**values: object) -> TrialConfig:
    """A small one at 128 px; values: of the section."""
    own = {f"method.{name}": value for name, value in values.items()}
    return TrialConfig().override({"method.name": "ssm", "method.width": 2, "data.image_size": SIDE} | own)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def trained_unet(width: int = 2) -> MaskedUNet:
    """Random weights whose batch norm has seen images."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        unet = MaskedUNet(width)
    masks = hide_sets(SIDE, 8, torch.Generator().manual_seed(1))[None]
    with torch.no_grad():
        reconstruct(unet.train(), drawn(2, 3, SIDE, SIDE, seed=5), masks)
    return unet.eval()


class Fixed(nn.Module):
    """In place of a U-Net: gives an image of one grey in each pass, and keeps the masks that it was shown."""

    def __init__(self, greys: tuple[float, float, float] = (0.5, 0.5, 0.5)) -> None:
        super().__init__()
        self.greys = torch.tensor(greys)
        self.shown: list[Tensor] = []

    def forward(self, masked: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        self.shown.append(mask)
        greys = self.greys.repeat(len(masked) // 3)[:, None, None, None]
        return greys.expand_as(masked), mask


# masks


@pytest.mark.parametrize(
    ("cell", "hidden"), [(2, [1366, 1366, 1364]), (4, [342, 342, 340]), (8, [86, 86, 84]), (16, [22, 22, 20])]
)
def test_hide_sets_are_disjoint_and_cover_the_image(cell: int, hidden: list[int]) -> None:
    masks = hide_sets(SIDE, cell, torch.Generator().manual_seed(4))
    assert masks.shape == (3, 1, SIDE, SIDE) and set(masks.unique().tolist()) == {0.0, 1.0}
    assert ((1 - masks).sum(0) == 1).all()
    cells = masks[:, :, ::cell, ::cell]
    assert torch.equal(masks, cells.repeat_interleave(cell, 2).repeat_interleave(cell, 3))
    assert (cells == 0).sum((1, 2, 3)).tolist() == hidden
    assert torch.equal(masks, hide_sets(SIDE, cell, torch.Generator().manual_seed(4)))
    assert not torch.equal(masks, hide_sets(SIDE, cell, torch.Generator().manual_seed(5)))


def test_rounds_hide_by_seeds_of_their_own_whatever_the_trial_s() -> None:
    assert not torch.equal(scoring_masks(0, (8,)), scoring_masks(1, (8,)))
    one, two = (ErrorScore(ssm(refine=True).override({"seed": seed})) for seed in (1, 2))
    for number in (0, 1):
        held = f"masks_{number}"
        assert torch.equal(one.get_buffer(held), two.get_buffer(held))
        assert torch.equal(one.get_buffer(held), scoring_masks(number, (8,)))
    three = scoring_masks(0, (2, 4, 8))
    assert torch.equal(three[6:], scoring_masks(0, (8,))) and torch.equal(three[3:6], scoring_masks(0, (4,)))


def test_a_block_is_surely_normal_where_more_than_four_fifths_of_it_are() -> None:
    errors = torch.ones(1, 16, 16)
    # 52 and 51 of 64 pixels below the threshold, and 64 that only reach it
    errors[0, :8, :8].view(8, 8)[:6] = 0.1
    errors[0, 6, :4] = 0.1
    errors[0, :6, 8:] = 0.1
    errors[0, 6, 8:11] = 0.1
    errors[0, 8:, :8] = 0.2
    shown = surely_normal(errors, torch.tensor(0.2))
    assert shown.shape == (1, 1, 16, 16)
    assert shown[0, 0, :8, :8].min() == 1 and shown.sum() == 64
    assert surely_normal(errors, torch.tensor(torch.nan)).sum() == 0


# network


def test_maps_widths_and_masks_of_the_unet() -> None:
    unet, seen = MaskedUNet(2), []
    for block in unet.masks:
        block.register_forward_hook(lambda _, inputs, __: seen.append((inputs[0].shape[1], inputs[0].shape[2])))
    made, mask = unet(drawn(3, 3, SIDE, SIDE), hide_sets(SIDE, 8, torch.Generator()))
    assert made.shape == (3, 3, SIDE, SIDE) and mask.shape == (3, 1, SIDE, SIDE)
    assert seen == [(16, 8), (16, 16), (8, 32), (4, 64), (2, 128)]
    # values of tanh
    assert made.abs().max() < 1 and mask.abs().max() < 1 and torch.cat([made, mask], dim=1).min() < 0


def test_the_published_width_has_as_many_weights_as_its_recipe() -> None:
    def convolution(above: int, width: int, side: int) -> int:
        return above * width * side**2

    def block(above: int, width: int, side: int) -> int:
        # two convolutions without biases, each with scale and shift
        return convolution(above, width, side) + convolution(width, width, 3) + 4 * width

    down = [block(3, 64, 3), block(64, 128, 4), block(128, 256, 4), block(256, 512, 4), block(512, 512, 4)]
    up = [convolution(b, w, 1) + w + block(2 * w, w, 3) for b, w in ((512, 512), (512, 256), (256, 128), (128, 64))]
    masks = [convolution(w + 1, w, 3) + convolution(w, w, 3) + w + 4 * w for w in (512, 512, 256, 128, 64)]
    total = sum(down) + sum(up) + sum(masks) + convolution(64, 4, 3) + 4
    with torch.device("meta"):
        unet = MaskedUNet(64)
    assert sum(weight.numel() for weight in unet.parameters()) == total == 33_294_852


def test_a_mask_block_corrects_what_is_visible_alone() -> None:
    block = MaskBlock(4).eval()
    features, mask = drawn(1, 4, 8, 8), torch.zeros(1, 1, 16, 16)
    assert torch.equal(block(features, mask), features)
    # the nearest pixel of a coarser map is the first of two
    mask[..., 0, 0] = mask[..., 5, 5] = 1
    changed = (block(features, mask) != features).any(1)[0]
    assert changed.nonzero().tolist() == [[0, 0]]
    assert (block(features, torch.ones_like(mask)) != features).any(1).all()


def test_each_pixel_comes_from_the_pass_that_hid_it() -> None:
    images, masks = drawn(2, 3, 6, 6), hide_sets(6, 2, torch.Generator().manual_seed(0))[None]
    made, seen = reconstruct(Fixed((0.1, 0.2, 0.3)), images, masks)
    owner = (1 - masks[0]).argmax(0)
    assert torch.allclose(made, torch.tensor([0.1, 0.2, 0.3])[owner].expand_as(made))
    assert torch.equal(seen, masks.expand(2, -1, -1, -1, -1))
    shown = torch.maximum(masks, (torch.arange(6) < 3).float().expand(2, 1, 1, 6, 6))
    made, _ = reconstruct(Fixed((0.1, 0.2, 0.3)), images, shown)
    assert torch.equal(made[..., :3], images[..., :3])
    assert torch.allclose(made[..., 3:], torch.tensor([0.1, 0.2, 0.3])[owner].expand(2, 3, 6, 6)[..., 3:])


def test_what_is_hidden_does_not_show_in_its_own_reconstruction() -> None:
    unet, images = trained_unet(), drawn(1, 3, SIDE, SIDE)
    masks = hide_sets(SIDE, 4, torch.Generator().manual_seed(2))[None]
    hidden = (masks[0, 1] == 0).expand(3, -1, -1)
    with torch.no_grad():
        made, _ = reconstruct(unet, images, masks)
        other, _ = reconstruct(unet, torch.where(hidden, 1 - images, images), masks)
    assert torch.equal(made[0][hidden], other[0][hidden])
    assert (made[0][~hidden] != other[0][~hidden]).float().mean() > 0.9


# likeness


def test_the_median_is_that_of_nine_pixels() -> None:
    maps = drawn(2, 1, 17, 20)
    maps[0, 0, 4:9, 4:9] = 0.5  # ties
    wanted = [ndimage.median_filter(one[0].numpy(), size=3, mode="nearest") for one in maps]
    np.testing.assert_array_equal(median(maps)[:, 0].numpy(), np.stack(wanted))


def test_gradients_of_a_ramp() -> None:
    ramp = (torch.arange(64) / 100).expand(1, 3, 64, 64)
    levels = gradients(ramp)
    assert [level.shape[-1] for level in levels] == [64, 32, 16, 8]
    for scale, level in enumerate(levels):
        # from one neighbour to the other two steps, which are twice as long at the next scale
        inside = level[..., 2:-2]
        assert torch.allclose(inside, torch.full_like(inside, ((0.02 * 2**scale) ** 2 + 1e-6) ** 0.5), atol=1e-5)
    flat = gradients(torch.full((1, 3, 64, 64), 0.3))
    assert all(torch.allclose(level, torch.full_like(level, 1e-3)) for level in flat)
    turned = gradients(ramp.mT)
    assert all(torch.allclose(one.mT, other) for one, other in zip(levels, turned, strict=True))
    slope = (0.02**2 + 1e-6) ** 0.5
    similarity = 1 - dissimilarities(levels, flat)[0][0, 0, 20, 20]
    assert similarity == pytest.approx((2 * slope * 1e-3 + 0.0026) / (slope**2 + 1e-6 + 0.0026), rel=1e-4)


def gms_by_scipy(image: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    """1 - GMS at four scales of images [3, S, S]."""

    def magnitude(grey: np.ndarray) -> np.ndarray:
        smooth = ndimage.median_filter(grey, size=3, mode="nearest")
        parts = [ndimage.prewitt(smooth, axis=axis, mode="nearest") / 3 for axis in (0, 1)]
        return np.sqrt(parts[0] ** 2 + parts[1] ** 2 + 1e-6)

    maps, one, two = [], image.mean(0), other.mean(0)
    for _ in range(4):
        g, h = magnitude(one), magnitude(two)
        maps.append(1 - (2 * g * h + 0.0026) / (g**2 + h**2 + 0.0026))
        one, two = (grey.reshape(len(grey) // 2, 2, -1, 2).mean((1, 3)) for grey in (one, two))
    return maps


def test_gradient_similarity_against_scipy() -> None:
    images, others = drawn(2, 3, 32, 32), drawn(2, 3, 32, 32, seed=1)
    wanted = [gms_by_scipy(a.double().numpy(), b.double().numpy()) for a, b in zip(images, others, strict=True)]
    found = dissimilarities(gradients(images), gradients(others))
    for scale, level in enumerate(found):
        np.testing.assert_allclose(level[:, 0].numpy(), [maps[scale] for maps in wanted], atol=1e-4)
    mean = np.mean([[level.mean() for level in maps] for maps in wanted])
    assert float(gms_loss(images, others)) == pytest.approx(mean, abs=1e-5)
    assert float(gms_loss(images, images)) == pytest.approx(0, abs=1e-6)
    raised = error_map(gradients(images), gradients(others))
    assert raised.shape == (2, 32, 32) and raised.min() >= 0 and raised.max() <= 1
    coarsest = functional.interpolate(found[3], size=32, mode="bilinear")[:, 0]
    rest = torch.stack([functional.interpolate(each, size=32, mode="bilinear")[:, 0] for each in found[:3]]).sum(0)
    assert torch.allclose(raised, (coarsest + rest) / 4)


def test_structural_similarity_against_scipy() -> None:
    images, others = drawn(1, 3, 24, 24), drawn(1, 3, 24, 24, seed=1)
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()

    def windowed(values: np.ndarray) -> np.ndarray:
        return ndimage.correlate1d(ndimage.correlate1d(values, weights, axis=0), weights, axis=1)[5:-5, 5:-5]

    parts = []
    for x, y in zip(images[0].double().numpy(), others[0].double().numpy(), strict=True):
        a, b = windowed(x), windowed(y)
        va, vb, vab = windowed(x * x) - a * a, windowed(y * y) - b * b, windowed(x * y) - a * b
        parts.append((2 * a * b + 1e-4) / (a * a + b * b + 1e-4) * (2 * vab + 9e-4) / (va + vb + 9e-4))
    assert float(ssim_loss(images, others)) == pytest.approx(1 - np.mean(parts), abs=1e-5)
    assert float(ssim_loss(images, images)) == pytest.approx(0, abs=1e-6)
    flat = torch.full((1, 3, 24, 24), 0.5)
    assert float(ssim_loss(flat, flat / 2)) == pytest.approx(1 - (2 * 0.125 + 1e-4) / (0.3125 + 1e-4), abs=1e-4)


class ShortProducts(TorchDispatchMode):
    """Products of float32 keep ten bits of each mantissa, as those of a GPU do under runtime.precision=tf32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            args = tuple(self.shortened(value) if value.dtype == torch.float32 else value for value in args)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def shortened(values: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(values)
        return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def test_short_products_change_neither_likeness_nor_scores() -> None:
    # bright and of little contrast: a variance is a small difference of large squares
    images, others = 0.9 + 0.02 * drawn(1, 3, 140, 140), 0.9 + 0.02 * drawn(1, 3, 140, 140, seed=1)
    score = with_unet(ssm().override({"data.image_size": 140}))

    def found() -> list[Tensor]:
        return [ssim_loss(images, others), score(images), images[0] @ others[0]]

    plain = found()
    with ShortProducts():
        loss, scores, product = found()
    assert torch.equal(loss, plain[0]) and torch.equal(scores, plain[1])
    # a difference that shows where nothing is done about it
    assert not torch.equal(product, plain[2])


# loss


def test_parts_of_the_loss_and_their_weights() -> None:
    images, masks = drawn(2, 3, 32, 32), hide_sets(32, 4, torch.Generator())[None]
    parts = masking_losses(images, images + 0.1, masks, masks.expand(2, -1, -1, -1, -1) + 0.5)
    assert float(parts["mse"]) == pytest.approx(0.01, rel=1e-4)
    # three passes of 0.5^2 each
    assert float(parts["mask"]) == pytest.approx(0.75, rel=1e-4)
    assert float(parts["gms"]) == pytest.approx(0, abs=1e-4) and 0 < float(parts["ssim"]) < 1
    section = ssm(mse=3.0, gms=0.0, ssim=2.0, mask=0.5).method
    wanted = 3 * 0.01 + 2 * float(parts["ssim"]) + 0.5 * 0.75
    assert float(weighted(parts, section)) == pytest.approx(wanted, rel=1e-4)  # type: ignore[arg-type]


# score


def test_shares_of_the_cells() -> None:
    assert cell_shares((2, 4, 8), "cell") == pytest.approx([4 / 84, 16 / 84, 64 / 84])
    assert cell_shares((2, 4, 8), "equal") == pytest.approx([1 / 3] * 3)


def with_unet(config: TrialConfig, unet: nn.Module | None = None) -> ErrorScore:
    return ErrorScore(config, Fixed() if unet is None else unet).eval()  # type: ignore[arg-type]


def test_the_score_of_a_known_reconstruction() -> None:
    images = drawn(2, 3, SIDE, SIDE)
    images[0, :, 40:60, 70:90] = 1.0
    for sigma in (7.0, 2.0):
        score = with_unet(ssm(sigma=sigma))
        wanted = []
        for image in images:
            levels = gms_by_scipy(image.double().numpy(), np.full((3, SIDE, SIDE), 0.5))
            raised = [
                functional.interpolate(torch.from_numpy(m)[None, None], size=SIDE, mode="bilinear") for m in levels
            ]
            wanted.append(ndimage.gaussian_filter(torch.stack(raised).mean(0)[0, 0].numpy(), sigma))
        np.testing.assert_allclose(score.error_maps(images).numpy(), np.stack(wanted), atol=2e-5)
        np.testing.assert_allclose(score(images).numpy(), [each.max() for each in wanted], atol=2e-5)


def test_the_order_of_scores_is_that_of_the_public_code() -> None:
    """Which adds up (1 - sum of four GMS maps) / 4 over the sides of the cells, each by 1 / N^2."""
    unet, images = trained_unet(), drawn(2, 3, SIDE, SIDE)
    score = with_unet(ssm(score_cells="2,4,8"), unet)
    levels, theirs = gradients(images), torch.zeros(2, SIDE, SIDE)
    with torch.no_grad():
        for cell in (2, 4, 8):
            parts = dissimilarities(levels, gradients(score.reconstructed(images, scoring_masks(0, (cell,)))[:, 0]))
            maps = [functional.interpolate(1 - part, size=SIDE, mode="bilinear")[:, 0] for part in parts]
            theirs += (1 - torch.stack(maps).sum(0)) / 4 / (SIDE // cell) ** 2
        theirs = torch.stack([torch.from_numpy(ndimage.gaussian_filter(one.numpy(), 7.0)) for one in theirs])
        ours = score.error_maps(images)
    shift, factor = 0.75, 1 / 64**2 + 1 / 32**2 + 1 / 16**2
    assert torch.allclose(theirs, factor * (ours - shift), atol=1e-6)
    assert (255 * factor * (PUBLISHED_THRESHOLD - shift)) == pytest.approx(-0.96)
    assert pytest.approx(0.0157, abs=1e-4) == PUBLISHED_THRESHOLD


def test_a_second_round_hides_only_what_was_not_surely_normal() -> None:
    images, unet = drawn(2, 3, SIDE, SIDE), Fixed()
    score = with_unet(ssm(refine=True), unet)
    once = with_unet(ssm())
    # as the reconstruction has it in one half
    images[0, :, :, :64] = 0.5
    first = once.error_maps(images)
    # some of the other half counts as normal too
    threshold = float(first[0].quantile(0.7))
    score.threshold.fill_(threshold)
    unet.shown.clear()
    second = score.error_maps(images)
    shown_before, shown = unet.shown[0].unflatten(0, (2, 3)), unet.shown[1].unflatten(0, (2, 3))
    visible = surely_normal(first, torch.tensor(threshold))
    assert torch.equal(shown_before, scoring_masks(0, (8,)).expand(2, -1, -1, -1, -1))
    assert torch.equal(shown, torch.maximum(scoring_masks(1, (8,)).expand(2, -1, -1, -1, -1), visible[:, None]))
    assert 0.2 < visible[0].mean() < 0.8
    assert second[0].sum() < first[0].sum()


def test_ends_of_the_second_round() -> None:
    images, unet = drawn(2, 3, SIDE, SIDE), trained_unet()
    score = with_unet(ssm(refine=True), unet)
    with torch.no_grad():
        # all of it surely normal: nothing is hidden, and nothing differs
        score.threshold.fill_(1.1)
        assert score(images).tolist() == pytest.approx([0, 0], abs=1e-6)
        # nothing is, as before a threshold is known: the second round's masks as they were drawn
        for threshold in (0.0, float("nan")):
            score.threshold.fill_(threshold)
            wanted = score.combined(score.errors(images, scoring_masks(1, (8,))))
            assert torch.equal(score.error_maps(images), wanted)


def test_the_published_threshold_needs_no_training() -> None:
    assert float(ErrorScore(ssm(refine_quantile="published")).threshold) == pytest.approx(PUBLISHED_THRESHOLD)
    assert ErrorScore(ssm()).threshold.isnan()


@pytest.mark.parametrize("size", [64, 128, 160, 448])
def test_images_of_any_size_are_seen_at_128_px(size: int) -> None:
    images = drawn(1, 3, size, size)
    score = with_unet(ssm().override({"data.image_size": size}))
    wanted = functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    assert torch.allclose(score.shrunk(images), wanted, atol=1e-5)
    assert torch.allclose(shrinking(size).sum(1), torch.ones(SIDE).double())
    if size == SIDE:
        assert torch.equal(score.shrunk(images), images)


def test_passes_of_several_sides_hold_fewer_images_and_are_all_as_large() -> None:
    assert [images_at_once(32, sides) for sides in (1, 2, 3, 4)] == [32, 16, 8, 8]
    assert [images_at_once(1, sides) for sides in (1, 3)] == [1, 1] and images_at_once(16, 3) == 4


# configuration


def test_cells_are_written_in_one_form() -> None:
    for given in ("8,2,4", [2, 4, 8], ["2", "4", "8"], " 2, 4 ,8"):
        assert ssm(cells=given).flat()["method.cells"] == "2,4,8"
    assert sides_of("2,4,8") == (2, 4, 8) and ssm(score_cells=16).flat()["method.score_cells"] == "16"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method.cells": "3"}, r"hold '3': cells have 2, 4, 8, 16 pixels a side"),
        ({"method.score_cells": []}, r"hold \[\]: cells have"),
        ({"method.mse": 0.0, "method.gms": 0.0, "method.ssim": 0.0}, "nothing is left that compares"),
        ({"method.refine_quantile": 1.0}, r"refine_quantile"),
        ({"method.sigma": 0.0}, r"method\.sigma=0\.0"),
        ({"data.shuffle_labels": True}, r"data\.shuffle_labels=true: ssm learns from normal images alone"),
        ({"augment.kind": "none"}, r"method ssm has no use for it"),
        ({"optim.lr": 1e-3}, r"optim\.lr=0\.001: method ssm has no use for it"),
        ({"method.widht": 4}, r"unknown configuration key 'method\.widht'; did you mean 'method\.width'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        ssm().override(values)
    assert "\n" not in str(caught.value)


def test_published_settings() -> None:
    paper = load_profile("paper").override(method_values("ssm_reading", "paper"))
    section = paper.method.model_dump()
    assert (section["width"], section["cells"], section["score_cells"], section["weight"]) == (
        64,
        "2,4,8",
        "2,4,8",
        "cell",
    )
    assert (section["refine"], section["refine_quantile"], section["sigma"]) == (True, "published", 7.0)
    assert [section[name] for name in ("mse", "gms", "ssim", "mask")] == [1.0] * 4
    assert (paper.budget.epochs, paper.budget.batch_size // 3, paper.optim.weight_decay) == (50, 32, 1e-5)
    rates = [paper.learning_rate(epoch) for epoch in range(50)]
    assert rates == pytest.approx([1e-4] * 15 + [1e-5] * 15 + [1e-6] * 15 + [1e-7] * 5)
    assert section["total_updates"] == "pass"
    gpu = load_profile("gpu").override(method_values("ssm_reading", "gpu"))
    assert gpu.learning_rate(0) == 1e-4
    cpu = load_profile("cpu").override(method_values("ssm_reading", "cpu"))
    assert (cpu.method.model_dump()["width"], cpu.data.image_size, cpu.budget.batch_size) == (6, 160, 18)
    assert cpu.learning_rate(0) == 2e-3


@pytest.mark.parametrize(("profile", "width"), [("cpu", 6), ("gpu", 64)])
def test_the_reading_can_be_searched_in_a_space_of_its_own(profile: str, width: int) -> None:
    asked = SearchOptions(method="ssm_reading", space="ssm")
    space = search_space(asked, profile, base_config(asked, profile))
    assert set(space.by_name) == set(ENTRY.hyperparameters)
    section = space.base.method.model_dump()
    assert (section["width"], section["cells"]) == (width, "2,4,8")
    # its rate is no other method's, whose range is another
    assert space.base.override({"method.lr": 5e-3}).learning_rate(0) == 5e-3


def test_its_name_says_whose_reading_it_is() -> None:
    assert list(ENTRY.published) == ["ssm_reading"]
    assert "our reading" in ENTRY.description and "our reading" in ENTRY.describe(ssm())


@pytest.mark.parametrize("setting", ["general", "anomaly-free"])
def test_a_space_of_its_own(setting: str) -> None:
    base = ssm().override({"data.setting": setting, "data.selection": "auto"})
    space = load_space("ssm", base)
    assert set(space.by_name) == set(ENTRY.hyperparameters)


def points(folder: Path, **parameters: list[object]) -> list[dict[str, object]]:
    """All points of a space of these fields of the section."""
    tree = {f"method.{name}": {"values": values} for name, values in parameters.items()}
    return [dict(point) for point in make_space(folder, parameters=tree, set={"method.name": "ssm"}).points()]


def test_fields_are_drawn_only_where_they_matter(tmp_path: Path) -> None:
    assert points(tmp_path, score_cells=["8", "4,8"], weight=["cell", "equal"]) == [
        {"method.score_cells": "8"},
        {"method.score_cells": "4,8", "method.weight": "cell"},
        {"method.score_cells": "4,8", "method.weight": "equal"},
    ]
    assert {"method.score_cells": "8,4", "method.weight": "equal"} in points(
        tmp_path, score_cells=["8", "8,4"], weight=["cell", "equal"]
    )
    assert points(tmp_path, refine=[False, True], refine_quantile=[0.3, 0.5]) == [
        {"method.refine": False},
        {"method.refine": True, "method.refine_quantile": 0.3},
        {"method.refine": True, "method.refine_quantile": 0.5},
    ]
