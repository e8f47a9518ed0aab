"""What is believed of a space: read, put into the manifest, drawn around, and let go of as evidence comes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy import integrate, stats

from sctune.config import load_profile
from sctune.errors import ConfigError, StudyError
from sctune.search.cluster.connection import Resources
from sctune.search.plan.method_space import method_space
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import make_plan
from sctune.search.plan.priors import read_priors
from sctune.search.run.plan_lines import plan_lines
from sctune.search.space.definition import Space, load_space
from sctune.search.space.scale import unit_cell
from sctune.search.study.manifest import StudyManifest, manifest_of
from sctune.search.study.proposals import prior_uses
from sctune.search.study.record import PROPOSAL
from sctune.search.study.stored import load_result
from sctune.search.study.study import Study
from sctune.search.suggest.beliefs import Belief, Centre, Prior, Told, density, draw, start_points
from sctune.search.suggest.evidence import credibility, merits
from sctune.search.suggest.samplers import SAMPLERS, make_sampler
from sctune.search.suggest.suggester import Suggester
from tests.builders import ANYWHERE, FLAT, make_manifest, make_space
from tests.search.searching import open_searcher, run_whole, suggest

HEADS = {
    "model.heads": {"type": "categorical", "choices": ["two_head_patch", "single_head", "two_head_latent"]},
    "model.patch_count": {"type": "int", "low": 2, "high": 6},
    "model.top_k": {"type": "float", "low": 0.02, "high": 0.5, "log": True},
    "augment.grid_size": {"type": "ordinal", "choices": [4, 6, 8, 12, 18]},
}

NUMBERS: list[tuple[BaseDistribution, Any]] = [
    (FloatDistribution(0.1, 0.9), 0.25),
    (FloatDistribution(1e-5, 1e-2, log=True), 1e-4),
    (FloatDistribution(0.0, 1.0, step=0.25), 0.75),
    (IntDistribution(2, 6), 2),
    (IntDistribution(1, 64, log=True), 8),
    (IntDistribution(0, 9, step=3), 9),
]


def belief(space: Space, **values: Any) -> Prior:
    named = {name.replace("__", "."): value for name, value in values.items()}
    return Prior(kind="file", name="p.yaml", centres=(Centre(values=named),))


def ended(
    number: int, params: dict[str, Any], space: Space, values: dict[int, float], full: bool = True
) -> FrozenTrial:
    trial = create_trial(
        state=TrialState.COMPLETE if full else TrialState.PRUNED,
        params=params,
        distributions={name: space.distributions[name] for name in params},
        value=values[max(values)],
        intermediate_values=values,
    )
    trial.number = number
    return trial


@pytest.mark.parametrize(("distribution", "centre"), NUMBERS, ids=str)
@pytest.mark.parametrize("width", [0.05, 0.3, 1.0])
def test_numbers_are_drawn_as_their_density_says(distribution: Any, centre: Any, width: float) -> None:
    rng = np.random.default_rng(1)
    drawn = [draw(distribution, centre, width, rng) for _ in range(4000)]
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in drawn)
    if distribution.step is None:
        # an independent truncated normal, on the distribution's own scale
        scale = math.log if distribution.log else float
        low, high = scale(distribution.low), scale(distribution.high)
        spread, middle = width * (high - low), scale(centre)
        expected = stats.truncnorm((low - middle) / spread, (high - middle) / spread, middle, spread)
        assert stats.kstest([scale(value) for value in drawn], expected.cdf).pvalue > 1e-3
        total = integrate.quad(
            lambda u: density(distribution, centre, width, math.exp(u) if distribution.log else u), low, high
        )[0]
        assert total / (high - low) == pytest.approx(1, abs=1e-6)
        return
    values = np.arange(distribution.low, distribution.high + distribution.step / 2, distribution.step)
    cells = [unit_cell(distribution, value) for value in values]
    chances = [
        density(distribution, centre, width, value) * (b - a) for value, (a, b) in zip(values, cells, strict=True)
    ]
    assert sum(chances) == pytest.approx(1)
    counts = [sum(abs(one - value) < 1e-9 for one in drawn) for value in values]
    likely = np.array(chances) * len(drawn) >= 5
    assert np.abs(np.array(counts) - np.array(chances) * len(drawn))[likely].max() < 5 * math.sqrt(len(drawn)) / 2


def test_choices_are_the_centre_or_any() -> None:
    distribution, rng = CategoricalDistribution(["a", "b", None, "c"]), np.random.default_rng(0)
    drawn = [draw(distribution, None, 0.4, rng) for _ in range(4000)]
    assert drawn.count(None) / 4000 == pytest.approx(0.6 + 0.1, abs=0.03)
    assert drawn.count("a") / 4000 == pytest.approx(0.1, abs=0.02)
    assert density(distribution, None, 0.4, None) == pytest.approx(4 * 0.7)
    assert density(distribution, None, 0.4, "c") == pytest.approx(4 * 0.1)


def test_a_belief_counts_what_it_names_and_the_point_holds(tmp_path: Path) -> None:
    space = make_space(tmp_path, parameters=FLAT, set=ANYWHERE)
    one = Belief(space, {"augment.threshold": 0.5}, {"augment.threshold": 0.1})
    away = {"augment.threshold": 0.5 + 0.8 * 0.1, "model.patch_count": 3}
    assert one.closeness(away) == pytest.approx(math.exp(-0.5))
    assert one.closeness({"model.patch_count": 3}) == 0 and one.log_density({"model.patch_count": 3}) == 0
    assert one.log_density(away) == pytest.approx(stats.norm.logpdf(1.0) - math.log(0.1), abs=1e-5)
    assert one.names("augment.threshold") and not one.names("model.patch_count")


def test_trials_are_compared_at_the_last_epoch_that_both_have(tmp_path: Path) -> None:
    space = make_space(tmp_path, parameters=FLAT, set=ANYWHERE)
    point = {"augment.threshold": 0.5, "model.patch_count": 3}
    trials = [
        ended(0, point, space, {1: 0.6, 2: 0.7, 3: 0.8}),
        ended(1, point, space, {1: 0.65}, full=False),  # stopped, and ahead of both others when it was
        ended(2, point, space, {1: 0.5, 2: 0.75, 3: 0.7}),
    ]
    assert merits(trials, 1.0).tolist() == [0.0, 1.0, -1.0]
    assert merits(trials, -1.0).tolist() == [0.0, -1.0, 1.0]
    assert merits(trials[:1], 1.0).tolist() == [0.0]


def test_credibility_goes_with_the_correlation_and_the_number_of_trials() -> None:
    rng = np.random.default_rng(0)
    seen = rng.normal(size=12)
    assert credibility(seen[:2], seen[:2]) == credibility(np.ones(12), seen)
    right, wrong, idle = credibility(seen, seen), credibility(-seen, seen), credibility(rng.normal(size=12), seen)
    assert right > 0.9 and wrong < 0.01 and wrong < idle < 0.5
    assert credibility(-seen[:5], seen[:5]) > wrong
    # half of the correlation that is expected speaks neither for nor against
    x = np.array([1.0, -1.0, 1.0, -1.0])
    y = np.array([1.0, -1.0, -1.0, 1.0])
    r = 0.3
    assert np.corrcoef(x, r * x + math.sqrt(1 - r * r) * y)[0, 1] == pytest.approx(r)
    assert credibility(x, r * x + math.sqrt(1 - r * r) * y) == pytest.approx(credibility(np.ones(4), x))


def searched(
    space: Space,
    sampler: str,
    priors: tuple[Prior, ...],
    value: Callable[[dict[str, Any]], float],
    n: int,
    cut: int = 0,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Points of a search and who proposed them; after `cut` trials everything is made anew, as by a resume."""

    def made(trials: list[FrozenTrial]) -> Suggester:
        own = make_sampler(sampler, 3, space=space, n_before=len(trials), priors=priors)
        return Suggester(space, own, 3, trials, first=start_points(space, priors), behind=2)

    suggester, points, sources = made([]), [], []
    for number in range(n):
        if cut and number == cut:
            suggester = made(suggester.trials())
        trial = suggester.ask()
        assert trial is not None
        points.append(suggester.params(number))
        proposal = suggester.proposal(number)
        assert (proposal is not None) == bool(priors)
        sources.append("" if proposal is None else proposal.source)
        suggester.tell(number, TrialState.COMPLETE, value(points[-1]))
    return points, sources


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("grid", "gp")])
def test_every_sampler_takes_priors(tmp_path: Path, sampler: str) -> None:
    space = make_space(tmp_path, parameters=HEADS, set=ANYWHERE)
    prior = belief(space, model__top_k=0.1, augment__grid_size=8, model__heads="two_head_latent")
    points, sources = searched(space, sampler, (prior,), lambda p: -abs(math.log(p["model.top_k"] / 0.1)), 25)
    assert sources[0] == "p.yaml" and points[0]["model.top_k"] == 0.1 and points[0]["augment.grid_size"] == 8
    assert {"p.yaml", "sampler", "best"} <= set(sources)


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
def test_a_resumed_search_proposes_the_same(tmp_path: Path, sampler: str) -> None:
    space = make_space(tmp_path, parameters=FLAT, set=ANYWHERE)
    prior = belief(space, augment__threshold=0.4)
    whole, resumed = (
        searched(space, sampler, (prior,), lambda p: -abs(p["augment.threshold"] - 0.45), 16, cut) for cut in (0, 7)
    )
    assert whole == resumed


def test_only_trials_before_the_look_behind_count(tmp_path: Path) -> None:
    """Whatever trials n - 2 and n - 1 give, and whether they have ended, trial n and who proposes it are the same."""
    space = make_space(tmp_path, parameters=FLAT, set=ANYWHERE)
    prior = belief(space, augment__threshold=0.4)
    for n in (5, 9, 13):
        found = []
        for value, state in ((9.0, TrialState.COMPLETE), (-9.0, TrialState.COMPLETE), (None, None)):
            own = make_sampler("random", 3, space=space, priors=(prior,))
            suggester = Suggester(space, own, 3, first=start_points(space, [prior]), behind=2)
            for number in range(n):
                assert suggester.ask() is not None
                if number < n - 2:
                    suggester.tell(number, TrialState.COMPLETE, math.sin(number))
                elif state is not None:
                    suggester.tell(number, state, value)
            assert suggester.ask() is not None
            found.append((suggester.params(n), suggester.proposal(n)))
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("right", [True, False])
def test_a_wrong_prior_is_let_go_of_and_a_right_one_is_followed(tmp_path: Path, right: bool) -> None:
    space = make_space(tmp_path, parameters=FLAT, set=ANYWHERE)
    prior = belief(space, augment__threshold=0.3, model__patch_count=3)
    best = 0.32 if right else 0.8
    near, shares = 0, []
    for seed in range(6):
        own = make_sampler("random", seed, space=space, priors=(prior,))
        suggester = Suggester(space, own, seed, first=start_points(space, [prior]), behind=2)
        for number in range(30):
            assert suggester.ask() is not None
            point, proposal = suggester.params(number), suggester.proposal(number)
            assert proposal is not None
            near += number >= 10 and proposal.source == "p.yaml"
            suggester.tell(number, TrialState.COMPLETE, -((point["augment.threshold"] - best) ** 2))
        shares.append(proposal.shares["p.yaml"])
    assert (near >= 10) == right
    assert (float(np.median(shares)) > 0.02) == right
    assert max(shares) <= 0.35


def test_the_order_of_an_earlier_study_decides_between_two(tmp_path: Path) -> None:
    """Of two earlier studies with the same best point the one whose other trials fall the same way gets the share."""
    space = make_space(tmp_path, parameters=FLAT, set=ANYWHERE)

    def earlier(name: str, turned: bool) -> Prior:
        places = np.linspace(0.1, 0.9, 17)
        told = tuple(
            Told(values={"augment.threshold": float(x)}, merit=float((-1 if turned else 1) * (1 - 2.5 * abs(x - 0.5))))
            for x in places
        )
        return Prior(kind="study", name=name, centres=(Centre(values={"augment.threshold": 0.5}),), trials=told)

    priors = (earlier("same", False), earlier("turned", True))
    own = make_sampler("random", 1, space=space, priors=priors)
    suggester = Suggester(space, own, 1, behind=2)
    for number in range(14):
        suggester.ask()
        suggester.tell(number, TrialState.COMPLETE, -abs(suggester.params(number)["augment.threshold"] - 0.5))
    proposal = suggester.proposal(13)
    assert proposal is not None and proposal.shares["same"] > 20 * proposal.shares["turned"]


# --- reading -----------------------------------------------------------------------------------------------------


def read(space: Space, *given: str, root: Path = Path("/none"), sampler: str = "tpe") -> tuple[Prior, ...]:
    return read_priors(given, space, sampler, None, root, None)


def test_the_paper_is_put_into_the_space() -> None:
    base = load_profile("cpu")
    (prior,) = read(load_space("full", base), "paper")
    assert prior.centres[0].values == {
        "augment.threshold_mode": "value",
        "augment.threshold": 0.4,
        "augment.grid_size": 18,
        "model.patch_count": 4,
        "model.top_k": 0.1,
        "optim.lr": 2e-4,
    }
    assert prior.note.endswith("6 of 6 parameters")
    space = load_space("threshold_patch", base)
    (prior,) = read(space, "paper")
    assert prior.note == "augment.threshold=0.4, model.patch_count=4; 2 of 2 parameters"
    # the space's own start point is the paper's
    assert start_points(space, [prior]) == []


def test_the_paper_is_clipped_and_what_no_value_is_near_is_not_believed(tmp_path: Path) -> None:
    space = make_space(
        tmp_path,
        parameters={
            "augment.threshold": {"type": "float", "low": 0.5, "high": 0.9},
            "augment.grid_size": {"type": "ordinal", "choices": [4, 8, 12]},
            "model.backbone": {"type": "categorical", "choices": ["efficientnet_lite0", "efficientnet_b0"]},
            "model.patch_count": {"type": "int", "low": 2, "high": 6, "step": 3},
        },
        set=ANYWHERE,
    )
    (prior,) = read(space, "paper")
    assert prior.centres[0].values == {"augment.threshold": 0.5, "augment.grid_size": 12, "model.patch_count": 5}
    assert start_points(space, [prior]) == [("paper", prior.centres[0].values)]


def test_every_method_has_its_own_published_values() -> None:
    space = method_space("cpu", load_profile("cpu"), {})
    (prior,) = read(space, "paper")
    methods = [centre.values["variant"] for centre in prior.centres]
    assert methods[0] == "deviation" and set(methods) == set(space.variants)
    for centre in prior.centres:
        space.config(centre.values)
        assert all(space.by_name[name].contains(value) for name, value in centre.values.items())


def test_a_space_of_which_the_paper_says_nothing_refuses_it(tmp_path: Path) -> None:
    space = make_space(
        tmp_path, parameters={"model.backbone": {"type": "categorical", "choices": ["efficientnet_lite0"]}}
    )
    with pytest.raises(
        ConfigError, match=r"^--prior paper: it says nothing of what space space searches; leave it out$"
    ):
        read(space, "paper")


def test_a_file_gives_values_and_widths(tmp_path: Path) -> None:
    space = make_space(tmp_path, parameters=HEADS, set=ANYWHERE)
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model.heads: two_head_latent\nmodel.top_k: {value: 5e-2, width: 0.1}\noptim.lr: 1.0e-4\naugment.grid_size: 8\n"
    )
    (prior,) = read(space, str(file))
    assert prior.centres == (
        Centre(
            values={"model.heads": "two_head_latent", "model.top_k": 0.05, "augment.grid_size": 8},
            widths={"model.top_k": 0.1},
        ),
    )
    assert prior.note.endswith("3 of 4 parameters; not searched: optim.lr")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.topk: 0.1", "unknown configuration key 'model.topk'; did you mean 'model.top_k'"),
        ("model.top_k: 0.9", r"model.top_k=0.9 is outside space space; it is a number in \[0.02, 0.5\]"),
        ("model.heads: four_head", "model.heads='four_head' is outside space space; it is one of two_head_patch"),
        ("model.top_k: {value: 0.1, width: 0}", "model.top_k.width: 0 must lie above 0 and be 1 at most"),
        ("model.top_k: {value: 0.1, width: true}", "model.top_k.width: True must lie above 0"),
        ("model.top_k: {value: 0.1, wide: 1}", "model.top_k: unknown key 'wide'; did you mean 'width'"),
        ("model.top_k: {width: 1}", "model.top_k: write {value: ..., width: ...}, got"),
        ("optim.lr: 1.0e-4", "none of its fields is searched by space space, which has model.heads"),
        ("{}", "none of its fields is searched"),
    ],
)
def test_a_bad_file_is_refused_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    space = make_space(tmp_path, parameters=HEADS, set=ANYWHERE)
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"^--prior {file}: {message}") as raised:
        read(space, str(file))
    assert "\n" not in str(raised.value)


def test_what_is_no_prior_is_refused(tmp_path: Path) -> None:
    space = make_space(tmp_path, parameters=HEADS, set=ANYWHERE)
    with pytest.raises(StudyError, match=r"^--prior papr: no study 'papr' in .*; a file ends in .yaml"):
        read(space, "papr", root=tmp_path)
    with pytest.raises(ConfigError, match=r"cannot read .*none.yaml"):
        read(space, "none.yaml")
    with pytest.raises(ConfigError, match="--prior paper is given twice"):
        read(space, "paper", "paper")
    with pytest.raises(ConfigError, match="--prior paper: sampler grid tries every point"):
        read(space, "paper", sampler="grid")


def test_a_part_of_a_point_is_tried_first_without_what_cannot_be(tmp_path: Path) -> None:
    parameters = {
        "augment.kind": {"type": "categorical", "choices": ["saliencycut", "none"]},
        "augment.threshold": {"type": "float", "low": 0.1, "high": 0.9, "when": {"augment.kind": "saliencycut"}},
        "model.top_k": {"type": "float", "low": 0.02, "high": 0.5},
    }
    space = make_space(tmp_path, parameters=parameters)
    without = belief(space, augment__threshold=0.4, model__top_k=0.1)
    assert start_points(space, [without]) == [("p.yaml", {"augment.threshold": 0.4, "model.top_k": 0.1})]
    idle = belief(space, augment__kind="none", augment__threshold=0.4, model__top_k=0.1)
    assert start_points(space, [idle]) == [("p.yaml", {"augment.kind": "none", "model.top_k": 0.1})]
    points, sources = searched(space, "random", (without,), lambda p: p["model.top_k"], 6)
    assert sources[0] == "p.yaml" and points[0]["model.top_k"] == 0.1
    assert points[0].get("augment.threshold", 0.4) == 0.4


# --- studies ------------------------------------------------------------------------------------------------------


def earlier_study(
    folder: Path, name: str, parameters: dict[str, Any], values: list[dict[str, Any]], **space: Any
) -> Study:
    """A study whose trials have these points, each a bit worse than the one before it."""
    folder.mkdir(exist_ok=True)
    loaded = make_space(folder, parameters=parameters, set=ANYWHERE, start=values, **space)
    study = Study.create(folder / "root", make_manifest(loaded, name=name, sampler="random", trials=len(values)))
    searcher = open_searcher(study)
    for index, point in enumerate(values):
        assert suggest(searcher, str(index))["params"] == point
        run_whole(searcher, str(index), 0.9 - 0.01 * index)
    searcher.controller.record.close()
    return study


def test_an_earlier_study_says_what_overlaps(tmp_path: Path) -> None:
    points = [
        {"augment.threshold": 0.3, "model.patch_count": 4, "model.top_k": 0.1},
        {"augment.threshold": 0.85, "model.patch_count": 4, "model.top_k": 0.2},  # outside
        {"augment.threshold": 0.5, "model.patch_count": 6, "model.top_k": 0.1},  # outside
        {"augment.threshold": 0.4, "model.patch_count": 3, "model.top_k": 0.3},
        {"augment.threshold": 0.6, "model.patch_count": 2, "model.top_k": 0.1},
        {"augment.threshold": 0.7, "model.patch_count": 2, "model.top_k": 0.1},
    ]
    parameters = {**FLAT, "model.top_k": {"type": "float", "low": 0.02, "high": 0.5}}
    earlier_study(tmp_path / "a", "hall", parameters, points)
    here = {
        "model.patch_count": {"type": "ordinal", "choices": [2, 3, 4]},
        "augment.threshold": {"type": "float", "low": 0.2, "high": 0.8},
        "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
    }
    space = make_space(tmp_path, parameters=here, set=ANYWHERE)
    (prior,) = read(space, "hall", root=tmp_path / "a" / "root")
    assert [centre.values for centre in prior.centres] == [
        {"model.patch_count": 4, "augment.threshold": 0.3},
        {"model.patch_count": 3, "augment.threshold": 0.4},
        {"model.patch_count": 2, "augment.threshold": 0.6},
    ]
    assert [centre.weight for centre in prior.centres] == [3.0, 2.0, 1.0]
    # their places among all six
    assert [told.merit for told in prior.trials] == pytest.approx([1.0, -0.2, -0.6, -1.0])
    assert prior.note == (
        "4 of its 6 trials lie in this space; the best is trial 0: augment.threshold=0.3, model.patch_count=4; "
        "2 of 3 parameters"
    )


def test_an_earlier_study_elsewhere_is_refused(tmp_path: Path) -> None:
    points = [{"augment.threshold": 0.1 + 0.01 * index, "model.patch_count": 4} for index in range(4)]
    earlier_study(tmp_path / "a", "hall", FLAT, points)
    here = {"augment.threshold": {"type": "float", "low": 0.5, "high": 0.9}}
    with pytest.raises(
        ConfigError, match=r"^--prior hall: 0 of its 4 ended trials lie in space space, and 3 are needed"
    ):
        read(make_space(tmp_path, parameters=here), "hall", root=tmp_path / "a" / "root")
    # of another method, whatever it shares
    (tmp_path / "b").mkdir()
    other = load_space("mlep", load_profile("cpu").override({"method.name": "mlep"}))
    shared = {"optim.lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}}
    earlier_study(tmp_path / "b", "rate", shared, [{"optim.lr": 1e-4 * k} for k in (1, 2, 3)])
    with pytest.raises(ConfigError, match=r"^--prior rate: 0 of its 3"):
        read(other, "rate", root=tmp_path / "b" / "root")
    assert read(make_space(tmp_path, parameters=shared), "rate", root=tmp_path / "b" / "root")


def test_an_earlier_study_is_not_needed_any_more(tmp_path: Path) -> None:
    """It is in the manifest whole: deleted, the resumed study goes on as the undisturbed one."""
    points = [{"augment.threshold": 0.2 + 0.05 * index, "model.patch_count": 2 + index % 5} for index in range(8)]
    earlier_study(tmp_path / "a", "hall", FLAT, points)
    space = make_space(tmp_path, parameters=FLAT, set=ANYWHERE)
    priors = read(space, "hall", root=tmp_path / "a" / "root")
    shutil.rmtree(tmp_path / "a")
    found = []
    for cut in (None, 6):
        fields = {"name": f"s{cut}", "trials": 12, "look_behind": 2, "priors": priors}
        study = Study.create(tmp_path / "root", make_manifest(space, sampler="tpe", **fields))
        searcher = open_searcher(study)
        for number in range(12):
            if number == cut:
                searcher.controller.record.flush()
                searcher = open_searcher(study)
            config = suggest(searcher, str(number))
            run_whole(searcher, str(number), 0.9 - (config["params"]["augment.threshold"] - 0.3) ** 2)
        trials = searcher.controller.record.load()
        found.append([(one.user_attrs["params"], one.user_attrs[PROPOSAL]) for one in trials])
        uses = prior_uses(Study.open(tmp_path / "root", study.name).manifest, trials)
        searcher.controller.record.close()
    assert found[0] == found[1]
    assert found[0][0][0] == points[0] and found[0][0][1]["source"] == "hall"
    (use,) = uses
    counted = sum(proposal["source"] == "hall" for _, proposal in found[0])
    assert (use.trials, use.of, use.share) == (counted, 12, found[0][-1][1]["shares"]["hall"])
    result = load_result(tmp_path / "root", study.name, noise=False)
    assert result.priors == (use,) and result.to_dict()["priors"][0]["trials"] == counted


def test_old_manifests_have_no_priors(tmp_path: Path) -> None:
    space = make_space(tmp_path, parameters=FLAT, set=ANYWHERE)
    made = make_manifest(space, priors=read(space, "paper"))
    assert manifest_of(made.model_dump_json(), "x") == made
    tree = json.loads(made.model_dump_json())
    del tree["priors"]
    assert manifest_of(json.dumps(tree), "x").priors == ()


def test_the_plan_names_a_prior_and_what_of_it_applies(image_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"augment.threshold": 0.7, "optim.lr": 1e-4}))
    options = SearchOptions(
        profile="smoke", data=str(image_folder), selection="extra", name="s", priors=("paper", str(file))
    )
    plan = make_plan(options, has_gpu=False)
    lines = plan_lines(plan, Resources(2, 0, 1, 0, 2, 1))
    assert "prior paper: augment.threshold=0.4, model.patch_count=4; 2 of 2 parameters" in lines
    assert f"prior {file}: augment.threshold=0.7; 1 of 2 parameters; not searched: optim.lr" in lines
    assert isinstance(plan.manifest, StudyManifest) and [one.name for one in plan.manifest.priors] == [
        "paper",
        str(file),
    ]
