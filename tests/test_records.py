"""Records survive a round trip through JSON, nested ones included."""

import json

from assay.records import ClassMetrics, DataRef, Evaluation, Interval, RunKey


def test_round_trip_restores_tuples_and_nested_records() -> None:
    evaluation = Evaluation(
        metrics={"accuracy": Interval(0.9, 0.8, 1.0)},
        per_class={"a": ClassMetrics(1.0, 0.5, 2 / 3, 4)},
        confusion=((2, 2), (0, 4)),
        baselines={"majority_class": {"accuracy": 0.5}},
        num_test=8,
        confidence=0.95,
        predictions_path="p.parquet",
        figures={"confusion": "c.png"},
        report_path="r.html",
        seconds=0.5,
    )
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))) == evaluation


def test_round_trip_of_fixed_tuples_and_defaults() -> None:
    ref = DataRef("data", "0" * 32 + ".dir", "digits", 3, ("a", "b"), (8, 8, 1))
    assert DataRef.from_json(json.loads(json.dumps(ref.to_json()))) == ref
    key = RunKey("d", {"data": "x"})
    assert RunKey.from_json(json.loads(json.dumps(key.to_json()))) == key
