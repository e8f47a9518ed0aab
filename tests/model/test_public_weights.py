"""Weights of the public code: a second implementation of its three models, saved as it saves them, scores the same."""

from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from sctune.backbones.weights import read_state
from sctune.config import TrialConfig
from sctune.errors import ConfigError, WeightsError
from sctune.methods.deviation.detector import Detector, load_detector
from sctune.methods.deviation.public_weights import detector_state, public_config, recognise
from sctune.methods.pixels import normalise

PLACES = {14: (5, 0, 6, 3), 7: (2, 0, 3, 1)}
"""Side of the map -> four diagonal positions, one draw of the public code."""


class Trunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = resnet18()

    def forward(self, x):
        net = self.net
        x = net.maxpool(torch.relu(net.bn1(net.conv1(x))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(512, 256), nn.Linear(256, 1)

    def forward(self, x):
        return self.fc2(self.fc1(x.mean((2, 3))).relu()).abs()[:, 0]


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.scoring = nn.Conv2d(512, 1, 1)

    def forward(self, x):
        return highest(self.scoring(x))


class Residual(Cells):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(512, 512, 3, padding=1), nn.BatchNorm2d(512), nn.ReLU())

    def forward(self, x):
        return super().forward(self.conv(x))


class SaliencyCutModel(nn.Module):
    """Scores of both heads; places: side of the map -> diagonal positions of the four patches."""

    def __init__(self):
        super().__init__()
        self.feature_extractor, self.normalhead, self.anomalyhead = Trunk(), Whole(), Residual()

    def forward(self, images, scales, places=PLACES):
        normal, anomaly = [], []
        for level in pyramid(images, scales):
            maps = self.feature_extractor(level)
            side = maps.shape[-1] // 2 + 1
            w1, w2, w3, w4 = (maps[:, :, at : at + side, at : at + side] for at in places[maps.shape[-1]])
            normal.append(self.normalhead(maps))
            anomaly.append(self.anomalyhead(w4 - (w3 - (w2 - w1))))
        return {"normal": sum(normal) / scales, "anomaly": sum(anomaly) / scales}


class DraModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.feature_extractor, self.holistic_head = Trunk(), Whole()
        self.seen_head, self.pseudo_head, self.composite_head = Cells(), Cells(), Residual()

    def forward(self, images, references, scales):
        total = dict.fromkeys(("normal", "seen", "pseudo", "latent"), 0)
        for level, reference in zip(pyramid(images, scales), pyramid(references, scales), strict=True):
            maps, mean = self.feature_extractor(level), self.feature_extractor(reference).mean(0, keepdim=True)
            total["normal"] += self.holistic_head(maps) / scales
            total["seen"] += self.seen_head(maps) / scales
            total["pseudo"] += self.pseudo_head(maps) / scales
            total["latent"] += self.composite_head(mean - maps) / scales
        return total


class DevNetModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.feature_extractor, self.conv = Trunk(), nn.Conv2d(512, 1, 1)

    def forward(self, images, scales):
        return sum(highest(self.conv(self.feature_extractor(level))) for level in pyramid(images, scales)) / scales


def highest(cells):
    values = cells.abs().flatten(1).sort(dim=1, descending=True).values
    return values[:, : max(values.shape[1] // 10, 1)].mean(1)


def pyramid(images, scales):
    # nearest: every second pixel, where the side is even
    return [images, images[:, :, ::2, ::2]][:scales]


def trained(kind, seed):
    """A model with batch statistics and weights that differ from those of a fresh one."""
    torch.manual_seed(seed)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.num_batches_tracked.fill_(600)
    return model.eval()


@pytest.fixture(scope="module")
def saliencycut():
    return trained(SaliencyCutModel, 1)


@pytest.fixture(scope="module")
def dra():
    return trained(DraModel, 2)


@pytest.fixture(scope="module")
def devnet():
    return trained(DevNetModel, 3)


def imported(model, folder: Path, side: int, scales: int, method: str, prefix: str = "") -> Detector:
    """Saved by torch, read back, converted, saved as sctune does, loaded."""
    file, written = folder / "model.pkl", folder / "model.safetensors"
    torch.save({f"{prefix}{name}": value for name, value in model.state_dict().items()}, file)
    public = recognise(read_state(file), file.name)
    assert public.method == method
    config = public_config(method, {"data.image_size": side, "model.n_scales": scales})
    state = detector_state(public, config).state
    if method == "dra":
        state["references"] = torch.zeros(config.model.reference_count, side, side, 3, dtype=torch.uint8)
    save_file(state, written)
    detector = load_detector(config, written)
    file.unlink()
    written.unlink()
    return detector


def pictures(count: int, side: int, seed: int) -> torch.Tensor:
    """Random uint8 images [N, S, S, 3] with coarse structure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(count, 3, 9, 9, generator=generator), size=side, mode="bilinear")
    fine = torch.rand(count, 3, side, side, generator=generator)
    return ((coarse + 0.2 * fine) / 1.2 * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def normalised(images: torch.Tensor) -> torch.Tensor:
    return normalise(images.permute(0, 3, 1, 2).float() / 255)


def close(ours, theirs):
    assert theirs.std() > 1e-3, "the images must differ in score, else nothing is compared"
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "scales"), [(224, 1), (448, 2)])
def test_saliencycut_scores_the_same_on_fixed_patches(saliencycut, tmp_path, side, scales):
    detector = imported(saliencycut, tmp_path, side, scales, "saliencycut", prefix="module.")
    images = normalised(pictures(3, side, seed=side))
    sides = [14, 7] if side == 448 else [7]
    offsets = [torch.tensor([[(at, at) for at in PLACES[cells]]]) for cells in sides]
    with torch.inference_mode():
        theirs, ours = saliencycut(images, scales), detector(images, offsets)
    for head in ("normal", "anomaly"):
        close(ours[head], theirs[head])


def test_saliencycut_scores_with_the_mean_of_all_draws(saliencycut, tmp_path):
    detector = imported(saliencycut, tmp_path, 224, 1, "saliencycut")
    images = pictures(2, 224, seed=5)
    with torch.inference_mode():
        draws = [saliencycut(normalised(images), 1, {7: order}) for order in permutations(range(4))]
    theirs = torch.stack([draw["anomaly"] - draw["normal"] for draw in draws]).mean(0)
    close(torch.from_numpy(detector.score_images(images.numpy())).float(), theirs)


@pytest.mark.parametrize(("side", "scales"), [(224, 1), (448, 2)])
def test_dra_scores_the_same_with_the_same_references(dra, tmp_path, side, scales):
    detector = imported(dra, tmp_path, side, scales, "dra")
    images, references = pictures(2, side, seed=6), pictures(5, side, seed=7)
    detector.set_references(references.numpy())
    with torch.inference_mode():
        theirs, ours = dra(normalised(images), normalised(references), scales), detector(normalised(images))
    for head, scores in theirs.items():
        close(ours[head], scores)
    total = theirs["seen"] + theirs["pseudo"] + theirs["latent"] - theirs["normal"]
    close(torch.from_numpy(detector.score_images(images.numpy())).float(), total)


@pytest.mark.parametrize(("side", "scales"), [(224, 1), (448, 2)])
def test_devnet_scores_the_same(devnet, tmp_path, side, scales):
    detector = imported(devnet, tmp_path, side, scales, "devnet", prefix="model.module.")
    images = pictures(2, side, seed=8)
    with torch.inference_mode():
        theirs = devnet(normalised(images), scales)
    close(torch.from_numpy(detector.score_images(images.numpy())).float(), theirs)


def test_every_name_is_accounted_for(saliencycut):
    state = saliencycut.state_dict()
    found = detector_state(recognise(state, "file"), public_config("saliencycut", {}))
    assert found.ignored == ["feature_extractor.net.fc.weight", "feature_extractor.net.fc.bias"]
    assert found.mapped.keys() | set(found.ignored) == state.keys()
    assert found.added == []
    assert all(torch.equal(found.state[own], state[public]) for public, own in found.mapped.items())
    assert found.mapped["feature_extractor.net.layer4.1.bn2.running_var"] == "backbone.blocks.4.1.bn2.running_var"


def test_files_without_batch_counters_are_complete(devnet):
    state = {name: value for name, value in devnet.state_dict().items() if "num_batches" not in name}
    found = detector_state(recognise(state, "file"), public_config("devnet", {}))
    assert len(found.added) == 20
    assert all(found.state[name].item() == 0 and name.endswith("num_batches_tracked") for name in found.added)


def test_trunk_may_lie_in_the_extractor_itself(devnet):
    state = {name.replace("extractor.net.", "extractor."): value for name, value in devnet.state_dict().items()}
    found = detector_state(recognise(state, "file"), public_config("devnet", {}))
    assert found.mapped["feature_extractor.bn1.bias"] == "backbone.blocks.0.1.bias"
    assert found.ignored == ["feature_extractor.fc.weight", "feature_extractor.fc.bias"]


def test_half_precision_becomes_single(devnet):
    state = {name: value.half() if value.is_floating_point() else value for name, value in devnet.state_dict().items()}
    found = detector_state(recognise(state, "file"), public_config("devnet", {}))
    assert found.state["anomaly.scoring.weight"].dtype == torch.float32
    assert torch.equal(found.state["anomaly.scoring.weight"], state["conv.weight"].float())


def test_imported_tensors_share_no_memory_with_the_file(devnet):
    found = detector_state(recognise(devnet.state_dict(), "file"), public_config("devnet", {}))
    assert found.state["anomaly.scoring.bias"].data_ptr() != devnet.conv.bias.data_ptr()


def without(*names):
    return lambda state: [state.pop(name) for name in names]


def replace(name, value):
    return lambda state: state.update({name: value})


NOT_PLAIN = "'normalhead.fc2.bias' .{}.* is no plain tensor .*float16, bfloat16, float32, float64"

FAULTS = {
    "missing": (without("anomalyhead.conv.1.running_var"), r"has no 'anomalyhead.conv.1.running_var' of shape \[512\]"),
    "no trunk": (
        lambda state: [state.pop(name) for name in list(state) if name.startswith("feature")],
        r"has no 'feature_extractor.net.conv1.weight' of shape \[64, 3, 7, 7\]",
    ),
    "shape": (
        replace("normalhead.fc1.weight", torch.zeros(128, 512)),
        r"'normalhead.fc1.weight' has shape \[128, 512\], and saliencycut needs \[256, 512\]",
    ),
    "extra": (replace("exchangeNet.0.weight", torch.zeros(3)), "1 entries .* the first is 'exchangeNet.0.weight'"),
    "extra block": (replace("feature_extractor.net.layer1.2.conv1.weight", torch.zeros(3)), "layer1.2.conv1.weight"),
    "nan": (replace("normalhead.fc2.bias", torch.tensor([float("nan")])), "'normalhead.fc2.bias' .* no finite"),
    "too large": (
        replace("normalhead.fc2.bias", torch.tensor([1e300], dtype=torch.float64)),
        "'normalhead.fc2.bias' .*float64.* no finite float32",
    ),
    "negative variance": (
        replace("anomalyhead.conv.1.running_var", torch.full((512,), -1.0)),
        "'anomalyhead.conv.1.running_var' holds negative variances",
    ),
    "whole numbers": (replace("normalhead.fc2.bias", torch.tensor([1])), NOT_PLAIN.format("torch.int64")),
    "complex": (replace("normalhead.fc2.bias", torch.tensor([1j])), NOT_PLAIN.format("torch.complex64")),
    "float8": (
        replace("normalhead.fc2.bias", torch.ones(1).to(torch.float8_e4m3fn)),
        NOT_PLAIN.format("torch.float8_e4m3fn"),
    ),
    "sparse": (replace("normalhead.fc2.bias", torch.ones(1).to_sparse()), NOT_PLAIN.format("torch.float32.*sparse")),
    "meta": (replace("normalhead.fc2.bias", torch.ones(1, device="meta")), NOT_PLAIN.format("torch.float32")),
    "nested": (
        replace("normalhead.fc2.bias", torch.nested.nested_tensor([torch.ones(1)])),
        NOT_PLAIN.format("torch.float32"),
    ),
    "twice": (replace("module.normalhead.fc2.bias", torch.zeros(1)), "'normalhead.fc2.bias' twice"),
    "two methods": (replace("seen_head.scoring.bias", torch.zeros(1)), "heads of more than one method"),
    "no heads": (
        lambda state: [state.pop(name) for name in list(state) if "head" in name],
        "none of the heads of a known method .*begin with 'feature_extractor'",
    ),
    "own": (replace("backbone.blocks.0.0.weight", torch.zeros(1)), "checkpoint of sctune already"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_clear_line(saliencycut, fault):
    spoil, message = FAULTS[fault]
    state = dict(saliencycut.state_dict())
    spoil(state)
    with pytest.raises(WeightsError, match=message) as problem:
        detector_state(recognise(state, "some.pkl"), public_config("saliencycut", {}))
    assert "some.pkl" in str(problem.value)
    assert "\n" not in str(problem.value)


def test_other_networks_conv_layers_are_no_devnet():
    with pytest.raises(WeightsError, match="none of the heads"):
        recognise({"stem.conv.0.weight": torch.zeros(1), "conv.0.bias": torch.zeros(1)}, "file")


@pytest.mark.parametrize("method", ["saliencycut", "dra", "devnet"])
def test_settings_are_the_published_ones_without_chance(method):
    config = public_config(method, {})
    assert (config.data.image_size, config.model.backbone, config.model.n_scales) == (448, "resnet18", 2)
    assert (config.model.patch_place, config.model.patch_count, config.augment.kernel) == ("diag", 4, "official")
    assert (config.model.patch_evaluation, config.model.reference_source) == ("exact", "normals")
    assert TrialConfig.load(config.model_dump()) == config


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("saliencycut", {"model.heads": "single_head"}, "model.heads=single_head: .* has two_head_patch"),
        ("devnet", {"model.tap": "middle"}, "model.tap=middle: .* has deep"),
        ("dra", {"data.setting": "anomaly-free"}, "no use for the seen head"),
        ("dra", {"augment.kind": "none"}, "no use for the pseudo head"),
        ("dra", {"model.patchcount": 3}, "unknown configuration key"),
    ],
)
def test_settings_that_contradict_the_file_are_refused(method, overrides, message):
    with pytest.raises(ConfigError, match=message):
        public_config(method, overrides)
