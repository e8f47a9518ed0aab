"""What crosses from worker to driver: finite numbers only, and means over the tasks."""

import pytest

from sctune.errors import NonFiniteError
from sctune.report import OBJECTIVE, EpochReport, merge_reports


def report(value, seconds=1.0, key="a", **more):
    metrics = {OBJECTIVE: value, "seconds": seconds, **more}
    return EpochReport(2, 4, metrics, {key: [value, 0.0]})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_named(value):
    with pytest.raises(NonFiniteError, match=r"loss is (nan|inf) after epoch 2"):
        report(0.5, loss=value)


def test_a_report_without_its_objective_is_a_bug():
    with pytest.raises(ValueError, match=OBJECTIVE):
        EpochReport(1, 2, {"loss": 1.0})


def test_it_survives_the_way_to_the_driver():
    sent = report(0.75, loss=2.0)
    assert EpochReport.from_dict(sent.to_dict()) == sent
    assert not sent.last


def test_a_dictionary_of_before_is_by_the_only_objective_there_was():
    row = report(0.75).to_dict()
    del row["objective"]
    assert EpochReport.from_dict(row) == report(0.75)


def test_another_objective_travels_with_its_report():
    sent = EpochReport(2, 4, {"selection_fpr95": 0.25, "selection_ap": 0.5}, objective="fpr95")
    again = EpochReport.from_dict(sent.to_dict())
    assert (again, again.value, again.metric) == (sent, 0.25, "selection_fpr95")
    with pytest.raises(ValueError, match="needs 'selection_fpr95'"):
        EpochReport(1, 2, {OBJECTIVE: 0.5}, objective="fpr95")


def test_the_worst_task_is_the_highest_where_lower_is_better():
    tasks = {
        key: EpochReport(1, 1, {"selection_fpr95": value}, {key: [value]}, "fpr95")
        for key, value in (("a", 0.5), ("b", 0.9))
    }
    merged = merge_reports(tasks)
    assert (merged.value, merged.objective) == (0.7, "fpr95")
    assert merged.metrics["selection_fpr95_worst"] == merged.metrics["selection_fpr95/b"] == 0.9


def test_tasks_are_averaged_and_the_worst_is_told():
    merged = merge_reports({"a": report(0.5, 2.0, "a", loss=1.0), "b": report(0.9, 3.0, "b", loss=3.0, only_b=1.0)})
    assert merged.metrics == pytest.approx(
        {
            OBJECTIVE: 0.7,
            "loss": 2.0,
            "seconds": 5.0,
            f"{OBJECTIVE}_worst": 0.5,
            f"{OBJECTIVE}/a": 0.5,
            f"{OBJECTIVE}/b": 0.9,
        }
    )
    assert merged.scores == {"a": [0.5, 0.0], "b": [0.9, 0.0]}
    assert (merged.epoch, merged.epochs) == (2, 4)


def test_one_task_stays_as_it_is():
    alone = report(0.5, 2.0, "a", loss=1.0)
    assert merge_reports({"a": alone}) == alone
