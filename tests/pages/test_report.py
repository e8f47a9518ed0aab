"""`sctune report` in a headless Chromium: whole without a network, safe whatever people named, and honest."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from PIL import Image
from typer.testing import CliRunner

from sctune.cli import app
from sctune.config import TrialConfig
from sctune.confirm.results import Confirmation, Tested, write_confirmation
from sctune.errors import ConfigError, StudyError
from sctune.metrics.objective import AUROC
from sctune.pages.commands import changed_fields, is_shipped, search_words
from sctune.pages.report import write_report
from sctune.pages.rungs import rungs
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import make_plan
from sctune.search.reconcile.delivery import WEIGHTS, write_model
from sctune.search.study.leaderboard import leaderboard
from sctune.search.study.ledger import add_look
from sctune.search.study.manifest import DataSpec, SelectionSpec
from sctune.search.study.result import summary_lines
from sctune.search.study.stored import load_result
from sctune.search.study.study import Study
from tests.pages.studies import drawn_scores, make_study, record_trial

CHROMIUM = Path("/usr/bin/chromium")
PARTS = (
    "summary", "references", "history", "rungs", "curves", "importance", "slice", "contour", "parallel", "leaderboard",
    "confirm", "looks", "gallery", "cost", "repeat", "setup",
)  # fmt: skip
FIGURES = ("history", "curves", "importance", "slice", "contour", "parallel")
EVIL = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>&amp;\"'"


class Browser:
    """A page that remembers what went wrong and what it asked the network for."""

    def __init__(self, page: Any) -> None:
        self.page, self.errors, self.requests = page, [], []
        page.on("console", lambda line: self.errors.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda problem: self.errors.append(str(problem)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path) -> Any:
        self.errors.clear()
        self.requests.clear()
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("load")
        return self.page


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not CHROMIUM.is_file():
        pytest.skip(f"no {CHROMIUM}; apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Browser]:
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    yield Browser(page)
    page.close()


def filled(study: Study, full: int = 4) -> Study:
    for number in range(full + 2):
        state = TrialState.COMPLETE if number < full else TrialState.PRUNED
        params = {"augment.threshold": 0.2 + number / 10, "optim.lr": 10 ** (-4 + number / 4)}
        scores = drawn_scores(study, 0.5 + number / 3, number)
        record_trial(study, number, state, params, 2 if number < full else 1, scores)
    return study


def written(study: Study) -> Path:
    path = study.folder.parent / f"{study.name}.html"
    write_report(study.folder.parent, study.name, path)
    return path


def test_trials_of_which_no_scores_are_kept_are_named(tmp_path: Path, tiny: TrialConfig) -> None:
    """As an earlier sctune recorded them: resumed, and ended at an epoch that was told again without scores."""
    study = make_study(tmp_path, tiny)
    for number, scores in enumerate((drawn_scores(study, 2.0), None, drawn_scores(study, -2.0, 1))):
        record_trial(study, number, TrialState.COMPLETE, {"augment.threshold": 0.3, "optim.lr": 1e-4}, 1, scores)
    done = CliRunner().invoke(app, ["status", study.name, "--study-root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    line = "no standard errors of trial(s) 1: the record does not hold their scores of the selection images"
    assert line in " ".join(done.output.split())
    assert "(standard error over" in " ".join(done.output.split())
    # nor has the best one any
    blind = make_study(tmp_path, tiny, "blind")
    for number, state in enumerate((TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE)):
        record_trial(blind, number, state, {"augment.threshold": 0.3, "optim.lr": 1e-4}, 1)
    page = written(blind).read_text()
    assert "trial(s) 0, 2: the record" in page
    assert "no scores are kept" in page


def add_pictures(study: Study, trial: int) -> None:
    best = study.folder / "best"
    best.mkdir()
    for name in ("pseudo_anomalies.png", "roc.png", "scores.png"):
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(best / name)
    (best / WEIGHTS).write_bytes(b"weights")
    write_model(study, {"trial": trial})


def test_the_whole_page_opens_without_errors_and_without_a_network(
    tmp_path: Path, tiny: TrialConfig, browser: Browser
) -> None:
    study = filled(make_study(tmp_path, tiny))
    add_pictures(study, 3)
    (study.folder / "figures").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(study.folder / "figures" / "trial-0003-gallery.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(study.folder / "figures" / "trial-0003-test-gallery.png")
    path = written(study)
    page = browser.open(path)
    for name in FIGURES:
        page.wait_for_selector(f"#plot-{name} .main-svg")
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    assert page.eval_on_selector_all("section", "all => all.map(one => one.id)") == list(PARTS)
    assert page.locator("#leaderboard tbody tr").count() == 6
    # three of the best trial, one by `sctune figures`; none with test images
    assert page.locator("#gallery img").count() == 4
    assert page.eval_on_selector_all("img", "all => all.every(one => one.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    text = path.read_text(encoding="utf-8")
    assert 'src="http' not in text and "Stripes by nobody" in page.inner_text("#gallery")
    assert "not distinguishable" in page.inner_text("#summary")


def test_it_can_be_read_without_javascript(tmp_path: Path, tiny: TrialConfig, chromium: Any) -> None:
    path = written(filled(make_study(tmp_path, tiny)))
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("#summary img").count() == 1
    assert page.locator("noscript .missing").count() == len(FIGURES)
    assert "core-hours" in page.inner_text("#cost") and "sctune search" in page.inner_text("#repeat")
    context.close()


def test_nothing_that_people_named_becomes_part_of_the_page(
    tmp_path: Path, tiny: TrialConfig, browser: Browser
) -> None:
    space = {
        "name": EVIL,
        "description": EVIL,
        "parameters": {"optim.lr": {"type": "float", "low": 1e-5, "high": 1e-2}},
        "variants": {"evil": {"augment.kind": "saliencycut"}, "plain": {"augment.kind": "cutmix"}},
    }
    data = DataSpec(name=EVIL, digest=EVIL, licence=EVIL, attribution=EVIL)
    chosen = SelectionSpec(mode="extra", reason=EVIL)
    study = make_study(tmp_path, tiny, space=space, data=data, selection=chosen, versions={EVIL: EVIL})
    for number, variant in enumerate(("evil", "plain", "evil")):
        params = {"variant": variant, "optim.lr": 1e-3 + number / 1000}
        record_trial(study, number, TrialState.COMPLETE, params, 2, drawn_scores(study, 1.0, number))
    failure = {"kind": EVIL, "message": EVIL, "traceback": EVIL}
    record_trial(study, 3, TrialState.FAIL, {"variant": "evil", "optim.lr": 5e-3}, 1, failure=failure)
    add_pictures(study, 2)
    page = browser.open(written(study))
    page.wait_for_selector("#plot-parallel .main-svg")
    page.wait_for_selector("#plot-slice .main-svg")
    assert page.evaluate("window.hit") is None
    assert browser.errors == []
    assert page.locator("img[src=x]").count() == 0 and page.locator("script").count() == 2 + 6
    assert EVIL in page.inner_text("#leaderboard")
    assert EVIL in page.inner_text("#summary"), "the failure is told word by word"


def empty(study: Study) -> None:
    pass


def single(study: Study) -> None:
    record_trial(study, 0, TrialState.COMPLETE, {"augment.threshold": 0.3, "optim.lr": 1e-3}, 2, drawn_scores(study, 1))


def pruned(study: Study) -> None:
    for number in range(3):
        params = {"augment.threshold": 0.3 + number / 10, "optim.lr": 1e-3}
        record_trial(study, number, TrialState.PRUNED, params, 1, drawn_scores(study, number, number))


def failed(study: Study) -> None:
    failure = {"kind": "NonFiniteError", "message": "loss is nan", "traceback": "..."}
    for number in range(2):
        params = {"augment.threshold": 0.3 + number / 10, "optim.lr": 1e-3}
        record_trial(study, number, TrialState.FAIL, params, number, failure=failure)


def unfinished(study: Study) -> None:
    record_trial(study, 0, TrialState.RUNNING, {"augment.threshold": 0.3, "optim.lr": 1e-3}, 1, drawn_scores(study, 1))


CASES: dict[str, tuple[Callable[[Study], None], set[str], str]] = {
    "empty": (empty, set(FIGURES), "no trial has run to the end"),
    "single": (single, {"importance", "contour"}, "the only full run"),
    "pruned": (pruned, set(FIGURES) - {"curves"}, "no trial has run to the end"),
    "failed": (failed, set(FIGURES) - {"curves"}, "every trial failed"),
    "unfinished": (unfinished, set(FIGURES) - {"curves"}, "no trial has run to the end"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_shown_says_why(case: str, tmp_path: Path, tiny: TrialConfig, browser: Browser) -> None:
    fill, left_out, text = CASES[case]
    study = make_study(tmp_path, tiny)
    fill(study)
    made = write_report(tmp_path, study.name, tmp_path / "r.html")
    assert set(made.left_out) == left_out and all(made.left_out.values())
    page = browser.open(made.path)
    for name in set(FIGURES) - left_out:
        page.wait_for_selector(f"#plot-{name} .main-svg")
    assert browser.errors == []
    for name in left_out:
        assert page.inner_text(f"#{name} .missing").startswith("Not shown: ")
    assert text in page.inner_text("#summary")
    assert "has not been confirmed" in page.inner_text("#confirm")
    assert "0 looks" in page.inner_text("#looks")


def test_a_confirmation_and_the_looks_are_told(tmp_path: Path, tiny: TrialConfig) -> None:
    study = filled(make_study(tmp_path, tiny))
    ranking = [
        {
            "name": EVIL,
            "trial": 3,
            "fields": {"optim.lr": 0.001},
            "mean": 0.8123,
            "std": 0.01,
            "seeds": {1: 0.8, 2: 0.82},
            "search_value": 0.9,
        }
    ]
    span = {"value": 0.7777, "low": 0.7, "high": 0.85, "std": 0.02, "seeds": {1: 0.77, 2: 0.78}}
    test = {
        "opened": "2026-01-02",
        "images": (40, 50),
        "winner": span,
        "reference": None,
        "difference": None,
        "against": None,
        "subset_std": None,
        "pooled_std": None,
        "optimism_search": 0.1223,
        "optimism_confirm": 0.03,
        "models": (),
    }
    found = Confirmation.model_validate(
        {
            "study": study.name,
            "study_id": study.manifest.study_id,
            "confirm_study": "small-confirm",
            "written": "2026-01-01",
            "mode": "extra",
            "seeds": (1, 2),
            "ranking": ranking,
            "reference": None,
            "false_alarm_rate": 0.01,
            "notes": (EVIL,),
            "test": None,
        }
    )
    write_confirmation(study, found)
    assert "have not been opened by the confirmation" in written(study).read_text(encoding="utf-8")
    write_confirmation(study, found.model_copy(update={"test": Tested.model_validate(test)}))
    add_look(study, f"confirm {EVIL}", 90, 2)
    add_look(study, "figures --test", 20, 1)
    text = written(study).read_text(encoding="utf-8")
    for told in ("0.8123", "0.7777 (95 % interval 0.7000 to 0.8500", "+0.1223", "looked at 2 times", "40 normal, 50"):
        assert told in text, told
    assert EVIL not in text and html.escape(EVIL).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text


def test_rungs_count_who_came_how_far(tmp_path: Path, tiny: TrialConfig) -> None:
    study = make_study(tmp_path, tiny.override({"budget.epochs": 6}))
    reached = {0: 6, 1: 1, 2: 2, 3: 4, 4: 1, 5: 3}
    for number, epochs in reached.items():
        state = TrialState.COMPLETE if epochs == 6 else TrialState.FAIL if number == 5 else TrialState.PRUNED
        params = {"augment.threshold": 0.2 + number / 10, "optim.lr": 1e-3}
        record_trial(study, number, state, params, epochs, failure={} if state is TrialState.FAIL else None)
    found = rungs(study.manifest, leaderboard(study.record.load(), AUROC))
    assert [(one.epoch, one.reached, one.stopped) for one in found] == [
        (1, 6, (1, 4)), (2, 4, (2,)), (4, 2, (3,)), (6, 1, ()),
    ]  # fmt: skip


def test_the_file_is_replaced_at_once_or_not_at_all(tmp_path: Path, tiny: TrialConfig) -> None:
    study = make_study(tmp_path / "studies", tiny)
    path = tmp_path / "out" / "r.html"
    path.parent.mkdir()
    path.write_text("before")
    with pytest.raises(StudyError):
        write_report(tmp_path / "studies", "none", path)
    assert path.read_text() == "before"
    write_report(tmp_path / "studies", study.name, path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [one.name for one in path.parent.iterdir()] == ["r.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .* --out"):
        write_report(tmp_path / "studies", study.name, tmp_path / "file" / "r.html")
    words = ["report", study.name, "--out", "r.txt", "--study-root", str(tmp_path / "studies")]
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.parametrize(
    "words",
    [
        shlex.split(
            "--space threshold_patch --trials 7 --seeds 3,4 --set budget.epochs=3 --grace 2 --factor 3 --audit .5 "
            "--stop-confidence .9 --min-gain .01"
        ),
        pytest.param(
            ["--space", "full", "--setting", "anomaly-free", "--sampler", "random", "--scheduler", "none"],
            marks=pytest.mark.slow,
        ),
        ["--space", "OWN", "--set", "optim.lr=0.01", "--set", "model.weights=random", "--partition-seed", "2"],
        pytest.param(
            ["--space", "threshold_patch", "--method", "saliencycut", "--n-anomalies", "all", "--selection", "seen"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--space", "threshold_patch", "--setting", "hard", "--known-class", "spot", "--skip-corrupt"],
            marks=pytest.mark.slow,
        ),
        ["--space", "ssm", "--set", "method.mask=2"],
        ["--space", "OWN", "--method", "ssm_reading", "--set", "method.sigma=4", "--n-anomalies", "4"],
    ],
    ids=["seeds", "anomaly-free", "own-space", "method", "hard", "space-of-a-method", "other-method"],
)
def test_the_printed_command_makes_the_same_study(
    words: list[str], tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "space.yaml"
    own.write_text("name: own\nparameters:\n  data.balance: {values: [0.5, 0.7]}\n")
    monkeypatch.chdir(tmp_path)
    words = [str(own) if word == "OWN" else word for word in words]
    asked = ["search", "--profile", "smoke", "--data", str(image_folder), *words]
    first = planned(asked, monkeypatch)
    printed = search_words(first, "again")
    assert printed[0] == "sctune"
    again = planned(printed[1:], monkeypatch)
    same = ("config", "tasks", "space", "sampler", "sampler_seed", "scheduler", "trials", "selection", "profile",
            "partition_seed", "splits", "audit")  # fmt: skip
    for field in same:
        assert getattr(again, field) == getattr(first, field), field
    assert is_shipped(first) == (words[1] != str(own))
    assert "model.patch_place" not in changed_fields(first), "the space sets it"
    # what the images were found to be is fixed for the study
    changed = {name: value for name, value in changed_fields(first).items() if name != "data.range"}
    if "ssm" in words:
        assert changed == {"method.mask": 2}
    if "ssm_reading" in words:
        assert changed == {"method.name": "ssm", "method.sigma": 4}


def test_the_report_of_a_study_of_another_method(tmp_path: Path, tiny: TrialConfig) -> None:
    study = make_study(
        tmp_path, tiny.override({"method.name": "ssm"}), space={"parameters": {"data.balance": {"values": [0.5, 0.7]}}}
    )
    assert "method.name=ssm" in html.unescape(written(study).read_text())


def planned(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The manifest of what a command line asks for; nothing is started."""
    asked: list[SearchOptions] = []

    class StoppedError(Exception):
        pass

    def take(options: SearchOptions) -> None:
        asked.append(options)
        raise StoppedError

    monkeypatch.setattr("sctune.search.run.dryrun.dry_run", take)
    with pytest.raises(StoppedError):
        CliRunner().invoke(app, [*words, "--dry-run"], catch_exceptions=False)
    manifest = make_plan(asked[0], has_gpu=False).manifest
    resources = manifest.resources.model_copy(update={"max_concurrent": 2, "asked_concurrent": None})
    return manifest.model_copy(update={"resources": resources})


def test_a_command_with_strange_words_is_quoted(tmp_path: Path, tiny: TrialConfig) -> None:
    from sctune.pages.commands import command

    line = command(search_words(make_study(tmp_path, tiny).manifest, "a b"))
    assert "--name 'a b'" in line and re.match(r"sctune search --space space\.yaml ", line)


def test_the_best_is_compared_with_the_median_full_run(tmp_path: Path, tiny: TrialConfig) -> None:
    """A trial that was stopped has the value of an earlier epoch, and takes no part, however good or bad that is."""
    study = make_study(tmp_path, tiny)
    shifts = {0: 2.0, 1: 1.0, 2: 0.5, 3: 1.5, 4: 0.0, 5: 0.1}
    values = {}
    for number, shift in shifts.items():
        params = {"augment.threshold": 0.2 + number / 10, "optim.lr": 1e-3}
        full = number < 4
        scores = drawn_scores(study, shift, seed=1)
        state = TrialState.COMPLETE if full else TrialState.PRUNED
        values[number] = record_trial(study, number, state, params, 2 if full else 1, scores)
    study.record.close()
    result = load_result(tmp_path, study.name)
    assert result.best is not None and result.best.number == 0 and result.gap is not None
    # of four full runs the lower of the two in the middle
    assert result.gap.second == 1
    assert values[0] is not None and values[1] is not None
    assert result.gap.difference == pytest.approx(values[0] - values[1])
    assert any(line.startswith("best and median full run (1) differ by ") for line in summary_lines(result))
