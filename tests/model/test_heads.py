"""Heads against the public code's arrays, brute force and their own invariances."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from sctune.methods.deviation.geometry import patch_offsets, patch_side
from sctune.methods.deviation.heads import NormalHead, PatchResidualHead, top_k_mean
from sctune.methods.deviation.patches import scoring_signs, signed_set_count, signs

GOLDEN = Path(__file__).parents[1] / "golden" / "heads_public.npz"


@pytest.fixture(scope="module")
def golden():
    return {name: torch.from_numpy(np.asarray(array)) for name, array in np.load(GOLDEN).items()}


def part(golden, prefix):
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def loaded_head(golden, **options):
    head = PatchResidualHead(16, **options)
    head.load_state_dict(part(golden, "anomaly."))
    return head.eval()


def small_head(**options):
    torch.manual_seed(1)
    head = PatchResidualHead(6, **options)
    with torch.no_grad():
        head.conv[1].running_mean.normal_()
        head.conv[1].running_var.uniform_(0.5, 2)
        head.conv[1].weight.normal_()
    return head.eval()


def test_normal_head_gives_the_public_scores(golden):
    head = NormalHead(16)
    head.load_state_dict(part(golden, "normal."))
    assert torch.allclose(head.eval()(golden["x"]), golden["normal_score"].flatten(), atol=1e-5)


def test_anomaly_head_gives_the_public_scores(golden):
    offsets = [(int(step), int(step)) for step in golden["diagonal_offsets"]]
    scores = loaded_head(golden, top_k=float(golden["topk"]))(golden["x"], offsets)
    assert torch.allclose(scores, golden["anomaly_score"].flatten(), atol=1e-5)
    assert patch_side(14, 4, "half_plus1") == int(golden["block_size"])


def test_four_patches_fold_to_equation_8():
    assert signs(4) == [-1, 1, -1, 1]
    head = small_head()
    features = torch.rand(2, 6, 7, 7)
    w = [features[:, :, o : o + 4, o : o + 4] for o in (0, 2, 1, 3)]
    expected = w[3] - (w[2] - (w[1] - w[0]))
    offsets = torch.tensor([[[o, o] for o in (0, 2, 1, 3)]])
    assert torch.allclose(head._residual(features, offsets), expected)


@pytest.mark.parametrize("patch_count", [2, 3, 4])
def test_exact_score_is_the_mean_over_all_ordered_draws(patch_count):
    head = small_head(patch_count=patch_count)
    features = torch.rand(3, 6, 7, 7)
    with torch.inference_mode():
        draws = [head(features, [(p, p) for p in order]) for order in permutations(range(4), patch_count)]
        assert torch.allclose(head(features), torch.stack(draws).mean(0), atol=1e-6)


def test_exact_score_on_the_whole_map_too():
    head = small_head(patch_count=2, place="grid2d")
    features = torch.rand(2, 6, 5, 5)
    positions = patch_offsets(5, 3, "grid2d")
    with torch.inference_mode():
        draws = [head(features, list(order)) for order in permutations(positions, 2)]
        assert torch.allclose(head(features), torch.stack(draws).mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("positions", "patch_count", "count"), [(4, 3, 12), (4, 4, 6), (7, 4, 210), (7, 5, 210), (7, 7, 35)]
)
def test_number_of_signed_sets(positions, patch_count, count):
    assert signed_set_count(positions, patch_count) == count
    side = 2 * positions - 1 if positions == 4 else 14
    sets = scoring_signs(side, side - positions + 1, "diag", patch_count, "exact")
    assert sets.shape == (count, positions)
    assert len({tuple(row.tolist()) for row in sets}) == count
    assert (sets.abs().sum(1) == patch_count).all()
    assert (sets.sum(1) == patch_count % 2).all()


def test_fixed_sets_use_every_position_evenly_and_never_change():
    sets = scoring_signs(14, 8, "grid2d", 6, "fixed")
    used = sets.abs().sum(0)
    assert used.max() - used.min() <= 1
    assert (sets.abs().sum(1) == 6).all()
    scoring_signs.cache_clear()
    assert torch.equal(sets, scoring_signs(14, 8, "grid2d", 6, "fixed"))


@pytest.mark.parametrize("evaluation", ["exact", "fixed"])
def test_scores_do_not_depend_on_batch_or_order(evaluation):
    head = small_head(patch_count=3, place="grid2d", evaluation=evaluation)
    features = torch.rand(5, 6, 7, 7)
    with torch.inference_mode():
        whole = head(features)
        assert torch.allclose(torch.cat([head(one[None]) for one in features]), whole, atol=1e-6)
        assert torch.allclose(head(features.flip(0)).flip(0), whole, atol=1e-6)


def test_random_evaluation_varies():
    head = small_head(evaluation="random")
    features = torch.rand(2, 6, 14, 14)
    with torch.inference_mode():
        assert len({tuple(head(features).tolist()) for _ in range(10)}) > 1


def test_positions_per_sample_equal_one_image_at_a_time():
    head = small_head(patch_count=4, place="grid2d", per_sample=True)
    features = torch.rand(3, 6, 7, 7)
    offsets = head.draw_offsets(7, 3)
    assert offsets.shape == (3, 4, 2)
    assert all(len({tuple(p) for p in row.tolist()}) == 4 for row in offsets)
    alone = torch.cat([head(one[None], place.tolist()) for one, place in zip(features, offsets, strict=True)])
    assert torch.allclose(head(features, offsets), alone, atol=1e-6)


def test_top_k_keeps_at_least_one_cell():
    cells = torch.tensor([[5.0, 1.0, 3.0, 2.0]])
    assert top_k_mean(cells, 0.01).item() == 5.0
    assert top_k_mean(cells, 0.5).item() == 4.0
    assert top_k_mean(cells, 1.0).item() == pytest.approx(2.75)


def test_patch_sides_of_every_rule():
    assert [patch_side(14, p, "sqrt") for p in range(2, 10)] == [10, 8, 7, 6, 6, 5, 5, 5]
    assert [patch_side(7, p, "sqrt") for p in range(2, 10)] == [5, 4, 4, 3, 3, 3, 2, 2]
    assert [patch_side(14, p, "fit") for p in (8, 9)] == [7, 6]
    assert [patch_side(7, p, "fit") for p in (5, 6, 7)] == [3, 2, 1]
    assert (patch_side(14, 4, "half"), patch_side(14, 4, "half_plus1"), patch_side(7, 4, "half_plus1")) == (7, 8, 4)
