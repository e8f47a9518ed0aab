"""Whose a study is and what was noted on it: kept, shown everywhere, changed later, absent in studies of before."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path

import pytest

from sctune.errors import ConfigError
from sctune.search.plan.options import MAX_REMARK, SearchOptions
from sctune.search.reconcile.check import study_state
from sctune.search.reconcile.comparison import compare_runs
from sctune.search.reconcile.differences import StudyState
from sctune.search.reconcile.recorded import study_facts, tracking_of
from sctune.search.reconcile.summary import stored_summary
from sctune.search.study.process import this_user
from sctune.search.study.study import MANIFEST, Study
from sctune.tracking.events import NOTE, Event
from sctune.tracking.stored import StoredRun
from tests.builders import FLAT, make_manifest, make_space
from tests.conftest import Command


def make(root: Path, name: str = "s", **changes: str) -> Study:
    manifest = make_manifest(
        make_space(root, parameters=FLAT, set={"model.patch_place": "grid2d"}), name=name, **changes
    )
    return Study.create(root, manifest)


class Sink:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, event: Event) -> None:
        self.events.append(event)


def test_it_is_shown_and_changed(tmp_path: Path, command: Command) -> None:
    make(tmp_path, owner="ana@lab", notes="first [bold]look[/bold]\nat it")
    make(tmp_path, "t")
    code, shown, _ = command("status", "s", "--study-root", tmp_path)
    assert code == 0 and "owner: ana@lab\nnotes: first [bold]look[/bold] at it\n" in shown
    assert "owner" not in command("status", "t", "--study-root", tmp_path)[1]
    assert "ana@lab" in command("list", "--study-root", tmp_path)[1]
    _, out, _ = command("list", "--study-root", tmp_path, "--json")
    rows = {row["study"]: (row["owner"], row["notes"]) for row in json.loads(out)["studies"]}
    assert rows == {"s": ("ana@lab", "first [bold]look[/bold]\nat it"), "t": (None, None)}

    code, _, said = command("note", "s", "second", "--study-root", tmp_path)
    assert (code, said) == (0, "noted on s; `sctune sync s` shows it in MLflow\n")
    _, out, _ = command("status", "s", "--study-root", tmp_path, "--json")
    assert (json.loads(out)["owner"], json.loads(out)["notes"]) == ("ana@lab", "second")
    assert command("note", "s", "", "--owner", "bo@lab", "--study-root", tmp_path)[0] == 0
    assert (Study.open(tmp_path, "s").manifest.owner, Study.open(tmp_path, "s").manifest.notes) == ("bo@lab", "")
    assert "notes" not in command("status", "s", "--study-root", tmp_path)[1]


def test_a_study_that_runs_is_not_written_to(tmp_path: Path, command: Command) -> None:
    with make(tmp_path, notes="before").lock():
        code, _, said = command("note", "s", "after", "--study-root", tmp_path)
    assert code == 2 and "study 's' is being run" in said
    assert Study.open(tmp_path, "s").manifest.notes == "before"


def test_a_study_of_before_has_neither_and_does_not_share(tmp_path: Path) -> None:
    study = make(tmp_path)
    path = study.folder / MANIFEST
    tree = json.loads(path.read_text())
    for name in ("owner", "notes"):
        del tree[name]
    del tree["resources"]["share"]
    path.write_text(json.dumps(tree))
    manifest = Study.open(tmp_path, "s").manifest
    assert (manifest.owner, manifest.notes, manifest.resources.share) == (None, None, 0.0)
    assert manifest == study.manifest


def test_mlflow_is_told_and_compared(tmp_path: Path) -> None:
    study, sink = make(tmp_path, owner="ana@lab", notes="with the new lens"), Sink()
    tracking = tracking_of(study, sink)
    tracking.on_study_start()
    tracking.on_start(0, {"augment.threshold": 0.5, "model.patch_count": 3}, 1)
    whole, trial = (event["tags"] for event in sink.events)
    assert (whole["mlflow.user"], whole["owner"], whole["notes"]) == ("ana@lab", "ana@lab", "with the new lens")
    assert trial["mlflow.user"] == "ana@lab" and "notes" not in trial
    note = stored_summary(study, [], [])["tags"][NOTE]
    assert "- owner: ana@lab" in note and "- notes: with the new lens" in note

    def found(state: StudyState, **tags: str) -> list[str]:
        run = StoredRun("p", None, "study", None, 0, "FINISHED", {}, {"state": "FINISHED", **tags}, {})
        return [one.text for one in compare_runs([], [run], state)]

    state = study_state(study, [])
    done = StudyState(1, "done", notes=state.notes)
    assert found(done, notes="with the new lens") == []
    assert found(done, notes="other") == found(done) == ["MLflow has other notes on the study"]
    assert found(StudyState(1, "done")) == []
    # one that was emptied is told as empty, one that never was is not told
    study.with_notes("")
    assert study_facts(study).tags["notes"] == "" and "notes" not in study_facts(make(tmp_path, "t")).tags


def test_who_it_is_by_default_and_how_much_can_be_noted() -> None:
    assert this_user() == f"{getpass.getuser()}@{socket.gethostname()}"
    options = SearchOptions.from_command({"owner": " ana ", "notes": "x" * MAX_REMARK})
    assert (options.owner, len(options.notes or "")) == ("ana", MAX_REMARK)
    with pytest.raises(ConfigError, match=f"^--notes: {MAX_REMARK + 1} characters; write {MAX_REMARK} at most"):
        SearchOptions.from_command({"notes": "x" * (MAX_REMARK + 1)})
    for share in (-1, 1001, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"^--share "):
            SearchOptions.from_command({"share": share})


def test_a_share_needs_a_cluster(tmp_path: Path, command: Command) -> None:
    code, _, said = command("search", "--share", "2", "--study-root", tmp_path)
    assert code == 2 and said.startswith("sctune: --share 2: without --address a search has a Ray of its own")
    make(tmp_path)
    for share, message in ((2, "without --address"), (-1, "give a weight from 0 to 1000")):
        code, _, said = command("resume", "s", "--share", share, "--study-root", tmp_path)
        assert code == 2 and said.startswith(f"sctune: --share {share}:") and message in " ".join(said.split())
    assert Study.open(tmp_path, "s").manifest.resources.share == 0.0
    study = Study.open(tmp_path, "s")
    study.with_share(2.0)
    assert Study.open(tmp_path, "s").manifest.resources.share == 2.0
