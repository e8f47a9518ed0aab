"""The configuration: refused when it cannot be, with the value, the rule and the way out in one line."""

import subprocess
import sys

import pytest

from sctune.config import Task, TrialConfig, load_profile, parse_assignments, profile_names
from sctune.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augment.treshold": 0.3}, "did you mean 'augment.threshold'"),
        ({"augment.threshold": 3}, "augment.threshold=3: input should be less than or equal to 1"),
        ({"augment.threshold_mode": "sum"}, "augment.threshold_mode='sum': input should be 'value' or 'area'"),
        ({"data.n_anomalies": 0}, "data.n_anomalies=0: "),
        ({"seed": 1.5}, "seed=1.5"),
        ({"data.setting": "hard"}, "needs data.known_class"),
        ({"data.known_class": "mono"}, "takes no data.known_class"),
        ({"model.freeze": 6}, "resnet18 has 5 blocks"),
        (
            {"model.backbone": "resnet19"},
            "model.backbone='resnet19': unknown backbone 'resnet19'; did you mean 'resnet1",
        ),
        ({"model.taps": "stride8,strid16"}, "model.taps=stride8,strid16: resnet18 has no tap 'strid16'; did you mean"),
        ({"model.taps": ["deep", "stride32"]}, "deep, stride32 name one map of resnet18 twice; name each once"),
        ({"model.taps": 8}, "model.taps=8: input should be a valid string"),
        ({"augment.grid_size": 300}, "at most half of data.image_size"),
        ({"budget.batch_size": 3, "data.balance": 0.34}, "at least 2 and 1 are needed"),
        (
            {"data.image_size": 63, "model.heads": "four_head", "model.backbone": "efficientnet_lite0"},
            "data.image_size=63: the 31 px scale is too small for efficientnet_lite0 with model.tap=deep",
        ),
        (
            {"data.image_size": 448, "model.patch_place": "diag", "model.patch_count": 5},
            "the 224 px scale gives a map of S=7 cells with O=4 diag positions, and P=5 are needed",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigError) as caught:
        load_profile("gpu").override(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_the_command_line_are_numbers():
    assert parse_assignments(["optim.lr=2e-4", "model.patch_count=3", "data.group=null", "model.weights=a=b"]) == {
        "optim.lr": 2e-4,
        "model.patch_count": 3,
        "data.group": None,
        "model.weights": "a=b",
    }
    with pytest.raises(ConfigError, match="write key=value"):
        parse_assignments(["optim.lr"])


@pytest.mark.parametrize("text", ['"12"', "'12'", ' "12"', "!!str 12"])
def test_quoted_numbers_of_the_command_line_are_text(text):
    values = parse_assignments([f"data.group={text}"])
    assert values == {"data.group": "12"}
    assert TrialConfig().override(values).data.group == "12"
    assert parse_assignments(["model.weights='2e-4'", "optim.lr= 2e-4"]) == {"model.weights": "2e-4", "optim.lr": 2e-4}


@pytest.mark.parametrize("given", [["stride8", "stride16"], ("stride8", "stride16"), "stride8, stride16"])
def test_taps_are_a_list_or_text_and_stored_in_one_form(given):
    config = load_profile("cpu").override({"model.taps": given})
    assert config.model.taps == "stride8,stride16"
    assert config.model.tap_names == ("stride8", "stride16")
    assert TrialConfig.load(config.document()) == config
    assert parse_assignments(["model.taps=[stride8, stride16]"]) == {"model.taps": ["stride8", "stride16"]}


def test_a_backbone_and_its_sizes_are_checked_without_torch():
    script = (
        "import sys; from sctune.config import load_profile; from sctune.backbones.registry import SHIPPED\n"
        "for name in SHIPPED: load_profile('gpu').override({'model.backbone': name, 'model.taps': 'stride4,deep'})\n"
        "print(sorted({'torch', 'torchvision', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


@pytest.mark.parametrize("name", profile_names())
def test_profiles_survive_being_stored(name):
    profile = load_profile(name)
    assert TrialConfig.load(profile.model_dump()) == profile
    assert TrialConfig().override(profile.flat()) == profile


def test_batches_of_the_paper():
    paper = load_profile("paper")
    assert (paper.normal_slots, paper.budget.batch_size) == (32, 48)
    assert paper.override({"data.setting": "anomaly-free"}).normal_slots == 48


def test_task_keys_are_short_and_distinct():
    tasks = [Task(seed=1), Task(seed=2), Task(seed=1, known_class="a b"), Task(seed=1, fold=0, folds=2)]
    assert [task.key for task in tasks] == ["seed1", "seed2", "a_b-seed1", "seed1-fold1of2"]


def test_the_weight_of_a_density_that_does_not_count_is_read_as_it_was_stored() -> None:
    """1 was the default of the field, which configurations of every method were stored with."""
    stored = load_profile("cpu").override({"method.name": "gaussian"}).document()
    earlier = stored | {"score": stored["score"] | {"density": 1.0}}
    assert TrialConfig.load(earlier) == TrialConfig.load(stored)
    with pytest.raises(ConfigError, match=r"score\.density=3\.0: method gaussian has no use for it"):
        TrialConfig.load(stored | {"score": stored["score"] | {"density": 3.0}})
    fused = load_profile("cpu").override({"score.density": 1.0})
    assert TrialConfig.load(fused.document()).score.density == 1.0


def test_labels_are_not_shuffled_beside_a_density() -> None:
    with pytest.raises(ConfigError, match=r"data\.shuffle_labels=true: the density.*use model\.normal_head=mlp"):
        load_profile("cpu").override({"data.shuffle_labels": True})
    out = load_profile("cpu").override({"data.shuffle_labels": True, "model.normal_head": "mlp"})
    assert out.data.shuffle_labels
