"""The paper's methods as configurations."""

import pytest

from sctune.config import field_names, load_profile, method_entry, profile_names
from sctune.config.methods import BUILT_IN
from sctune.errors import ConfigError
from sctune.methods.named import method_names, method_values


def test_every_method_makes_a_configuration_of_every_profile():
    for profile in profile_names():
        for name in method_names():
            values = method_values(name, profile)
            flat = load_profile(profile).override(values).flat()
            assert {field: flat[field] for field in values} == values


def test_what_two_methods_share_means_the_same_in_both():
    """A space draws such a field for all of them at once, with the conditions that they agree on."""
    entries = [method_entry(name) for name in BUILT_IN]
    for field in field_names():
        users = [entry for entry in entries if entry.looks_at(field)]
        conditions = {entry.name: entry.conditions.get(field, ()) for entry in users}
        assert len(set(conditions.values())) <= 1, (field, conditions)
        section, _, leaf = field.partition(".")
        if section == "method" and leaf != "name":
            kinds = {entry.name: repr(entry.section.model_fields[leaf].annotation) for entry in users}
            assert len(set(kinds.values())) <= 1, (field, kinds)


@pytest.mark.parametrize("name", ["cutpaste", "kdad", "kdad_lite0", "kdad_resnet18"])
def test_a_published_method_goes_with_the_space_of_its_own(name):
    for profile in profile_names():
        values = method_values(name, profile)
        entry = method_entry(values["method.name"])
        assert not set(values) & set(entry.hyperparameters), profile


def test_methods_have_their_published_settings():
    dra = load_profile("paper").override(method_values("dra", "paper"))
    assert (dra.model.heads, dra.augment.kind, dra.model.reference_count) == ("four_head", "cutmix", 5)
    assert (dra.model.reference_source, dra.optim.step_when, dra.budget.epochs) == ("training", "start", 30)
    assert (dra.normal_slots, dra.budget.batch_size) == (32, 48)
    devnet = load_profile("paper").override(method_values("devnet", "paper"))
    assert (devnet.model.heads, devnet.augment.kind, devnet.budget.epochs) == ("single_head", "none", 50)
    assert (devnet.normal_slots, devnet.budget.batch_size, devnet.model.n_scales) == (24, 48, 2)
    assert (
        load_profile("cpu").override(method_values("devnet", "cpu")).budget.epochs == load_profile("cpu").budget.epochs
    )
    # the paper's method is the profile's without the density
    cpu = load_profile("cpu")
    assert cpu.override(method_values("saliencycut", "cpu")) == cpu.override({"model.normal_head": "mlp"}) != cpu


@pytest.mark.parametrize(
    ("name", "epochs"), [("saliencycut", [10, 10, 10]), ("dra", [9, 10, 10, 1]), ("devnet", [10, 10, 10, 10, 10])]
)
def test_learning_rates_fall_as_in_the_published_code(name, epochs):
    config = load_profile("paper").override(method_values(name, "paper"))
    rates = [config.learning_rate(epoch) for epoch in range(config.budget.epochs)]
    expected = [2e-4 * 0.1**drops for drops, count in enumerate(epochs) for _ in range(count)]
    assert rates == pytest.approx(expected)


def test_the_way_out_of_devnet_without_anomalies_works():
    config = load_profile("cpu").override(method_values("devnet", "cpu"))
    with pytest.raises(ConfigError, match=r"model\.heads=two_head_patch and augment\.kind=saliencycut"):
        config.override({"data.setting": "anomaly-free"})
    out = {"model.heads": "two_head_patch", "augment.kind": "saliencycut", "data.setting": "anomaly-free"}
    assert config.override(out).n_anomalies == 0


def test_unknown_method_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"'devnett'; did you mean 'devnet'"):
        method_values("devnett", "cpu")


@pytest.mark.parametrize("values", [{"model.heads": "single_head"}, {"augment.kind": "none"}])
def test_nothing_anomalous_to_learn_from_is_refused(values):
    with pytest.raises(ConfigError, match=r"data\.setting=anomaly-free"):
        load_profile("cpu").override({"data.setting": "anomaly-free"} | values)
