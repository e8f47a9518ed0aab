"""What `sctune rescore` says of a method with one way to score."""

from __future__ import annotations

from sctune.confirm.rescore import Rescored, ScoredVariant, rescored_lines


def test_a_method_with_one_way_to_score_is_told_no_more() -> None:
    trained = ScoredVariant(values={}, value=0.91234, difference=0.0)
    (line,) = rescored_lines(Rescored("s", 3, trained, ()))
    assert line == "as trained: selection_auroc 0.9123; its method has no other way to score"
