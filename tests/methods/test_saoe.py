"""SAOE: what each member sees, its loss and scale by hand, turns that look normal, and where outliers come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sctune.config import TrialConfig, load_profile
from sctune.errors import CheckpointError, ConfigError, DataError
from sctune.methods.base import TaskImages
from sctune.methods.named import method_values
from sctune.methods.registry import fresh_method, trained_method
from sctune.methods.saoe.batch import batch_counts
from sctune.methods.saoe.method import SaoeMethod
from sctune.methods.saoe.outliers import open_outliers, outlier_paths
from sctune.methods.saoe.turned import LEAST, unlike_turns
from sctune.search.space.definition import load_space
from sctune.train.trainer import Trainer
from tests.builders import make_space

CPU = torch.device("cpu")
ALL = "cutpaste,confetti,turned"


@pytest.fixture(scope="module")
def config(tiny: TrialConfig) -> TrialConfig:
    more = {"augment.rotation": "none", "model.weights": "imagenet", "budget.batch_size": 12, "optim.lr": 1e-3}
    return tiny.override({"method.name": "saoe", "method.turned": "always", "budget.iterations": 3, **more})


@pytest.fixture(scope="module")
def trainer(config: TrialConfig) -> Trainer:
    trainer = Trainer(config)
    trainer.reports = list(trainer.fit())  # type: ignore[attr-defined]
    return trainer


@pytest.fixture(scope="module")
def other_things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of one colour each."""
    root = tmp_path_factory.mktemp("outliers")
    for number in range(6):
        Image.new("RGB", (50, 40), (40 * number, 255 - 40 * number, 10)).save(root / f"{number}.png")
    return root


def method_of(trainer: Trainer) -> SaoeMethod:
    assert isinstance(trainer.method, SaoeMethod)
    return trainer.method


def to_uint8(part: Tensor) -> np.ndarray:
    return (part.permute(0, 2, 3, 1) * 255).round().numpy().astype(np.uint8)


def rows(array: np.ndarray, part: Tensor) -> list[list[int]]:
    """For each image the rows of an array that are the same."""
    return [np.flatnonzero((array == one).all(axis=(1, 2, 3))).tolist() for one in to_uint8(part)]


@pytest.mark.parametrize(
    ("size", "balance", "free", "outliers", "counts"),
    [
        (48, 2 / 3, False, False, (16, 16, 0, 16)),
        (48, 2 / 3, False, True, (16, 8, 8, 16)),
        (48, 2 / 3, True, False, (24, 24, 0, 0)),
        (48, 2 / 3, True, True, (24, 12, 12, 0)),
        (18, 2 / 3, False, True, (6, 3, 3, 6)),
        (10, 0.5, False, True, (3, 1, 1, 5)),
    ],
)
def test_slots_of_a_batch(
    config: TrialConfig, size: int, balance: float, free: bool, outliers: bool, counts: tuple[int, ...]
) -> None:
    more = {"data.setting": "anomaly-free", "data.selection": "auto"} if free else {}
    own = config.override({"budget.batch_size": size, "data.balance": balance, **more})
    assert batch_counts(own, outliers) == counts and sum(counts) == size


@pytest.mark.parametrize("name", ALL.split(","))
def test_what_each_member_sees(trainer: Trainer, name: str) -> None:
    method = method_of(trainer)
    held, batch = method.images, method_of(trainer).batch(name, 4)
    assert batch.counts == (4, 4, 0, 4) and batch.labels.tolist() == [0] * 4 + [1] * 8
    normal, seen = rows(held.array, batch.images[:4]), rows(held.array, batch.images[8:])
    assert all(set(found) & set(held.normals) for found in normal)
    assert all(set(found) & set(held.anomalies) for found in seen)
    made = to_uint8(batch.images[4:8])
    turned = [held.array[held.normals]] + [np.rot90(held.array[held.normals], turn, (1, 2)) for turn in (1, 2, 3)]
    whole = [[bool((some == one).all(axis=(1, 2, 3)).any()) for some in turned] for one in made]
    if name == "turned":
        # each is a normal image in a quarter turn, and none is upright
        assert all(any(found[1:]) and not found[0] for found in whole)
    else:
        assert not any(any(found) for found in whole)
        shares = [1 - (held.array[held.normals] == one).all(axis=3).mean(axis=(1, 2)).max() for one in made]
        # CutPaste covers 15 % at most; forty confetti of up to 6 x 6 pixels about a fifth of 64 x 64
        low, high = (0.0, 0.16) if name == "cutpaste" else (0.08, 0.4)
        assert all(low < share < high for share in shares)
    again, later = method.batch(name, 4), method.batch(name, 5)
    assert torch.equal(again.images, batch.images) and not torch.equal(later.images, batch.images)


def test_members_draw_for_themselves(trainer: Trainer) -> None:
    first, second = (method_of(trainer).batch(name, 0).images for name in ("cutpaste", "confetti"))
    assert not torch.equal(first[:4], second[:4])


def test_the_turned_member_turns_no_normal_image(config: TrialConfig) -> None:
    changes = {"augment.rotation": "quarter", "augment.flip": "both"}
    method = method_of(Trainer(config.override(changes)))
    held = method.images
    upright = [bool(found) for found in rows(held.array, method.batch("turned", 0).images[:4])]
    assert upright == [True] * 4
    others = [
        bool(found) for number in range(4) for found in rows(held.array, method.batch("cutpaste", number).images[:4])
    ]
    # of sixteen, of which a turn or a mirror leaves about one in eight as it was
    assert sum(others) < 8


def test_the_loss_is_the_binary_cross_entropy(trainer: Trainer, config: TrialConfig) -> None:
    method = method_of(Trainer(config.override({"method.updates": "each"})))
    expected = {}
    for name in ALL.split(","):
        batch = method.batch(name, 0)
        with torch.no_grad():
            logits = method.network.train().member(name)(batch.images).double().numpy()
        labels = batch.labels.numpy()
        expected[name] = np.log1p(np.exp(np.where(labels == 1, -logits, logits))).mean()
    fresh = method_of(Trainer(config.override({"method.updates": "each"})))
    figures = fresh.step(0)
    assert {name: float(figures[f"loss_{name}"]) for name in expected} == pytest.approx(expected, rel=1e-4)
    assert float(figures["loss"]) == pytest.approx(sum(expected.values()), rel=1e-4)
    # three steps, in which each of three members sees twelve images
    assert fresh.images_per_epoch == 3 * 3 * 12


def test_members_take_turns_where_updates_are_shared(config: TrialConfig) -> None:
    method = method_of(Trainer(config))
    for number, name in enumerate([*ALL.split(","), "cutpaste"]):
        before = {key: value.clone() for key, value in method.network.state_dict().items()}
        assert f"loss_{name}" in method.step(number)
        moved = {
            key.split(".")[1]
            for key, value in method.network.state_dict().items()
            if not torch.equal(value, before[key])
        }
        assert moved == {name}


def test_scores_are_means_of_deviations_of_normal_images(trainer: Trainer) -> None:
    method = method_of(trainer)
    images = trainer.selection.images

    def logits(some: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.array(some)).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            members = [method.network.member(name) for name in ALL.split(",")]
            return np.array([torch.cat([one(part) for part in pixels.split(1)]).double().numpy() for one in members])

    normal, found = logits(method.images.take(method.images.normals)), logits(images)
    means, deviations = normal.mean(axis=1)[:, None], normal.std(axis=1, ddof=1)[:, None]
    z = (found - means) / deviations
    assert method.score(images) == pytest.approx(z.mean(axis=0), rel=1e-3, abs=1e-3)
    whole, *alone = method.variant_scores(images, method.variants(trainer.config))
    assert whole == pytest.approx(z.mean(axis=0), rel=1e-3, abs=1e-3)
    assert np.array(alone) == pytest.approx(z, rel=1e-3, abs=1e-3)
    seen = (logits(method.images.take(method.images.anomalies)) - means) / deviations
    last = trainer.reports[-1].metrics  # type: ignore[attr-defined]
    shown = [last[f"seen_{name}"] for name in ALL.split(",")]
    assert shown == pytest.approx(seen.mean(axis=1), rel=1e-3, abs=1e-3) and last["members"] == 3
    single = trained_method(trainer.config.override({"method.scored": "confetti"}), CPU, method.model_state())
    assert single.score(images) == pytest.approx(z[1], rel=1e-3, abs=1e-3)


def test_the_mean_of_a_heat_map_is_the_score(trainer: Trainer) -> None:
    images = trainer.selection.images[:5]
    for scored in (None, "turned"):
        model = trained_method(trainer.config.override({"method.scored": scored}), CPU, trainer.method.model_state())
        maps = model.cells(images)
        assert maps is not None
        assert maps.mean(axis=(1, 2)) == pytest.approx(model.score(images), rel=1e-3, abs=1e-3)


def test_a_gallery_shows_each_member(trainer: Trainer) -> None:
    normals = trainer.selection.images[trainer.selection.labels == 0]
    made = trainer.method.examples(normals, 3)
    assert len(made) == 3
    for one, share in zip(made, ((0, 0.16), (0.08, 0.4), (1, 1)), strict=True):
        assert share[0] <= one.mask.mean() <= share[1] and (one.donor == one.receiver).all()
        assert (one.result[~one.mask] == one.receiver[~one.mask]).all() and (one.result != one.receiver).any()
    with pytest.raises(DataError, match="a gallery needs a held-out normal image"):
        trainer.method.examples(normals[:0], 3)


def test_turns_count_where_they_look_other() -> None:
    rng = np.random.default_rng(0)
    fitted, held = (rng.normal(size=(count, 6)).astype(np.float32) for count in (60, 30))
    turned = {1: held + 3, 2: rng.permutation(held), 3: -held - 3}
    assert unlike_turns(fitted, held, turned) == (1, 3)
    few = {turn: rows[: LEAST - 1] for turn, rows in turned.items()}
    assert unlike_turns(fitted, held[: LEAST - 1], few) == ()
    assert unlike_turns(np.ones_like(fitted), held, turned) == ()


def stripes(count: int, size: int = 64, noise: bool = False) -> np.ndarray:
    """Horizontal stripes that look the same upside down; noise: without any direction."""
    rng = np.random.default_rng(1)
    wave = np.sin(np.arange(size)[None] / 2 + rng.uniform(0, 6, (count, 1))) * (0 if noise else 60) + 120
    pixels = wave[:, :, None, None] + rng.normal(0, 10, (count, size, size, 1))
    return np.clip(pixels, 0, 255).astype(np.uint8).repeat(3, axis=3)


def test_the_turned_member_is_there_only_for_turns_that_are_not_normal(config: TrialConfig) -> None:
    own = config.override({"method.turned": "auto"})
    rows = np.arange(60)
    striped = fresh_method(own, CPU)
    striped.prepare(TaskImages(stripes(64), rows, np.arange(60, 64)))
    assert isinstance(striped, SaoeMethod)
    assert striped.turns == (1, 3) and striped.network.names == ALL.split(",")
    noisy = fresh_method(own, CPU)
    noisy.prepare(TaskImages(stripes(64, noise=True), rows, np.arange(60, 64)))
    assert isinstance(noisy, SaoeMethod) and noisy.network.names == ["cutpaste", "confetti"]
    figures = noisy.run_epoch(0, lambda: False)
    assert figures["members"] == 2 and "loss_turned" not in figures
    assert noisy.images_per_epoch == 3 * 12
    # and a model of its tensors has two members as well
    images = stripes(5)
    model = trained_method(own, CPU, noisy.model_state())
    np.testing.assert_array_equal(model.score(images), noisy.score(images))
    left_out = trained_method(own.override({"method.scored": "turned"}), CPU, noisy.model_state())
    assert left_out.score(images).tolist() == [0.0] * 5
    with pytest.raises(CheckpointError, match="none of method saoe"):
        trained_method(own.override({"method.members": "cutpaste"}), CPU, noisy.model_state())
    alone = fresh_method(own.override({"method.members": "turned"}), CPU)
    alone.prepare(TaskImages(stripes(64, noise=True), rows, np.arange(60, 64)))
    with pytest.raises(DataError, match=r"no member is left; use method\.turned=always, or cutpaste or confetti"):
        alone.run_epoch(0, lambda: False)


@pytest.mark.parametrize("updates", ["each", "shared"])
def test_it_goes_on_whatever_number_of_updates_members_had(config: TrialConfig, updates: str) -> None:
    own = config.override({"method.updates": updates, "budget.iterations": 1, "method.scale_normals": 4})
    images = TaskImages(stripes(10), np.arange(6), np.arange(6, 7))

    def prepared() -> SaoeMethod:
        method = fresh_method(own, CPU)
        assert isinstance(method, SaoeMethod)
        method.prepare(images)
        return method

    whole, later = prepared(), prepared()
    whole.run_epoch(0, lambda: False)
    tensors, values = whole.state()
    had = {int(name.split("/")[1]) for name in tensors if name.startswith("optim/")}
    count = sum(weight.requires_grad for weight in whole.network.parameters())
    assert len(had) == (count if updates == "each" else count // 3)
    tensors = {name: value.clone() for name, value in tensors.items()}
    later.load_state(tensors, json.loads(json.dumps(values)))
    for method in (whole, later):
        method.run_epoch(1, lambda: False)
    first, second = whole.state()[0], later.state()[0]
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("members", "trained", "here"),
    [
        ("confetti,turned", (1, 3), ()),
        ("confetti,turned", (1, 3), (2,)),
        ("confetti,turned", (), (1, 3)),
        ("turned", (1,), ()),
    ],
)
def test_a_checkpoint_says_which_turns_are_learned_from(
    config: TrialConfig, monkeypatch: pytest.MonkeyPatch, members: str, trained: tuple[int, ...], here: tuple[int, ...]
) -> None:
    """Another device may find a turn near the limit to look otherwise."""
    more = {"method.members": members, "model.weights": "random", "method.scale_normals": 4}
    own = config.override({"method.turned": "auto", **more})
    images = TaskImages(stripes(10), np.arange(6), np.arange(6, 10))

    def prepared(turns: tuple[int, ...]) -> SaoeMethod:
        monkeypatch.setattr(SaoeMethod, "_unlike_turns", lambda self, images: turns)
        method = fresh_method(own, CPU)
        assert isinstance(method, SaoeMethod)
        method.prepare(images)
        assert method.turns == turns
        return method

    first, second = prepared(trained), prepared(here)
    # a step of the last member
    first.step(len(first.network.names) - 1)
    tensors, values = first.state()
    tensors = {name: value.clone() for name, value in tensors.items()}
    values = json.loads(json.dumps(values))
    second.load_state(tensors, values)
    assert second.turns == trained and second.network.names == first.network.names
    for method in (first, second):
        method.step(len(first.network.names) + 1)
        method.step(len(first.network.names) + 2)
    later, other = first.state()[0], second.state()[0]
    assert later.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in later.items())
    assert not all(torch.equal(value, tensors[name]) for name, value in later.items() if name in tensors)
    for wrong in (None, [4], 1, *([[]] if members == "turned" else [])):
        with pytest.raises(CheckpointError, match=r"does not fit method saoe: its turns are"):
            second.load_state(tensors, values | {"turns": wrong})


def test_the_dry_run_counts_the_look_at_turned_images(config: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SaoeMethod, "_unlike_turns", lambda self, images: (1,))
    times = iter((2.0, 8.0))
    monkeypatch.setattr("sctune.methods.saoe.method.now", lambda _: next(times))
    monkeypatch.setattr("sctune.methods.network.NetworkMethod.time_step", lambda self: (1.0, 3))
    method = fresh_method(config.override({"method.turned": "auto", "model.weights": "random"}), CPU)
    method.prepare(TaskImages(stripes(3), np.arange(2), np.arange(2, 3)))
    # six seconds over two epochs of three steps
    assert method.time_step() == (2.0, 3)


def test_outliers_take_half_of_the_synthetic_slots(config: TrialConfig, other_things: Path) -> None:
    trainer = Trainer(config.override({"method.outlier_root": str(other_things)}))
    method = method_of(trainer)
    assert method.outliers is not None and len(method.outliers.rows) == 6
    for name in ALL.split(","):
        batch = method.batch(name, 0)
        assert batch.counts == (4, 2, 2, 4) and batch.labels.tolist() == [0] * 4 + [1] * 8
        assert all(rows(method.outliers.images, batch.images[6:8]))
        assert not any(rows(method.outliers.images, batch.images[:6]))
    assert "outliers of" in trainer.config.entry.describe(trainer.config)
    plain = load_profile("cpu").override(method_values("saoe_no_outliers", "cpu"))
    assert "without an outlier set" in plain.entry.describe(plain)


def test_a_checkpoint_knows_its_outliers(config: TrialConfig, other_things: Path, tmp_path: Path) -> None:
    root = tmp_path / "things"
    shutil.copytree(other_things, root)
    own = config.override({"method.outlier_root": str(root), "method.members": "confetti", "budget.iterations": 1})
    first = Trainer(own)
    first.run_epoch()
    held, meta = first.state()
    tensors, meta = {name: value.clone() for name, value in held.items()}, json.loads(json.dumps(meta))
    last = first.run_epoch()
    later = Trainer(own)
    later.load_state(tensors, meta)
    assert later.run_epoch().scores == last.scores
    # another file under the same name
    shutil.copy(root / "1.png", root / "0.png")
    with pytest.raises(CheckpointError, match=r"other files of method\.outlier_root.*start the trial anew"):
        Trainer(own).load_state(tensors, meta)
    # a model that only scores needs no outliers
    shutil.rmtree(root)
    images = first.selection.images[:3]
    np.testing.assert_array_equal(
        trained_method(own, CPU, first.method.model_state()).score(images), first.method.score(images)
    )
    with pytest.raises(DataError, match=r"method\.outlier_root=.* is no folder"):
        Trainer(own)


def test_outliers_are_normals_of_other_categories(config: TrialConfig, two_categories: Path, tmp_path: Path) -> None:
    own = config.override({"data.source": str(two_categories), "data.category": "first"})
    paths = outlier_paths(two_categories, own)
    assert len(paths) == 50 and all(path.startswith("second/train/good/") for path in paths)
    assert outlier_paths(two_categories / "second", own) == [path.removeprefix("second/") for path in paths]
    # at any depth, and once where a link leads there too
    (tmp_path / "deep").mkdir()
    for name in ("sets", "twice"):
        (tmp_path / "deep" / name).symlink_to(two_categories)
    deep = outlier_paths(tmp_path, own)
    assert len(deep) == 50 and all("/second/train/good/" in path for path in deep)
    few = open_outliers(two_categories, 7, own)
    assert len(few.rows) == 7 and few.digest == open_outliers(two_categories, 7, own.override({"seed": 5})).digest
    # a link to the task's own data is seen through
    (tmp_path / "link").symlink_to(two_categories / "first/test")
    for root in (two_categories / "first", tmp_path / "link"):
        with pytest.raises(DataError, match="holds no image but those of first; give a folder of other things"):
            outlier_paths(root, own)


def test_nothing_of_the_tasks_own_folder_is_an_outlier(config: TrialConfig, tmp_path: Path) -> None:
    places = ("task/ok/1", "task/ok/2", "task/nok/3", "task/masks/4", "beside/5", "beside/copy")
    root = tmp_path / "data"
    for number, place in enumerate(places):
        path = root / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(path)
    shutil.copy(root / "task/nok/3.png", root / "beside/copy.png")
    own = config.override({"data.source": str(root / "task"), "data.range": "bits:8"})
    assert outlier_paths(root, own) == ["beside/5.png", "beside/copy.png"]
    found = open_outliers(root, 10, own)
    assert found.images[found.rows][:, 0, 0].tolist() == [[80, 0, 0]]
    # what lies beside two folders is not theirs
    folders = f"normal={root / 'task/ok'};anomalous={root / 'task/nok'}"
    assert "task/masks/4.png" in outlier_paths(root, config.override({"data.source": folders}))
    (root / "beside/5.png").unlink()
    with pytest.raises(DataError, match="holds no image but those of task"):
        open_outliers(root, 10, own)
    # another depth is not cut to white
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(root / "beside/wide.png")
    with pytest.raises(
        DataError, match=r"beside/wide\.png: values from 4000 to 4000, and data\.range=bits:8 reads 0 to"
    ):
        open_outliers(root, 10, own)


def test_spaces_draw_what_a_choice_of_members_needs(tiny: TrialConfig, tmp_path: Path) -> None:
    parameters = {
        "method.members": {"values": [ALL, "cutpaste", "confetti,cutpaste"]},
        "method.confetti_count": {"values": [10.0, 20.0]},
        "method.turned": {"values": ["auto", "always"]},
    }
    base = tiny.override({"method.name": "saoe"})
    points = list(make_space(tmp_path, base, parameters=parameters, set={"method.name": "saoe"}).points())
    assert {"method.members": "cutpaste"} in points and len(points) == 4 + 1 + 2
    assert "method.confetti_most" in load_space("saoe", tiny).by_name
    assert (
        tiny.override({"method.name": "saoe", "method.members": ["turned", "cutpaste"]}).flat()["method.members"]
        == "cutpaste,turned"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method.members": "cutpaste,confeti"}, r"method\.members=.*'confeti' is no member; did you mean 'confetti'"),
        ({"method.members": "turned,turned"}, "names a member twice; name each once"),
        ({"method.members": 3}, r"method\.members=3: input should be a valid string"),
        ({"method.confetti_least": 0.5}, r"method\.confetti_least=0\.5 is above method\.confetti_most=0\.09375"),
        ({"method.confetti_count": 0.0}, r"method\.confetti_count=0\.0: input should be greater than 0"),
        ({"method.members": "confetti", "method.scored": "turned"}, r"method\.scored=turned: the ensemble has the"),
        ({"method.outlier_root": "x", "budget.batch_size": 4}, r"budget\.batch_size=4 leaves 1 synthetic slots"),
        ({"augment.cutpaste": "scar"}, r"augment\.cutpaste='scar': method saoe has no use for it"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(config: TrialConfig, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.override(values)
    assert "\n" not in str(caught.value)
