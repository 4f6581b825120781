"""A night compares with the champion before it trains, and says what it saw."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from assay.data.loading import Dataset
from assay.devices import Compute
from assay.errors import ModelFileError
from assay.evaluation.predictions import read_predictions
from assay.nightly import (
    PROFILE_FILE,
    Champion,
    Sight,
    find_champion,
    first_sight,
    look_at_data,
    profile_with_answers,
    seen_before,
)
from assay.params import NightlyParams
from assay.plan import Plan
from assay.records import FIRST, REFUSED, Decision, ModelRef, RunKey
from assay.records.night import INPUTS, LABELS, PREDICTIONS
from assay.registry.contest import TestBench
from assay.registry.ledger import Ledger
from assay.registry.promotions import Promotions
from assay.tracking.runs import Tracker
from tests.data.made import make_dataset
from tests.registry.gated import (
    ERRORS,
    MODEL,
    NUM_CLASSES,
    add_version,
    copy_version,
    joined,
    make_bench,
    make_params,
    make_pictures,
    model_folder,
    part,
)
from tests.tracking.conftest import template_home
from tests.tracking.parts import make_project

__all__ = ["template_home"]

CHANGED, DRIFTED = NightlyParams(), NightlyParams(train_when="drifted")
OTHER_DATA = Sight(True, "changed since champion 1: data md5 1 -> 2", changes=("data md5 1 -> 2",))


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The made data has no shards, and its path is relative."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, template_home: Path) -> TestBench:
    """The champion's day; 300 test examples."""
    project = make_project(tmp_path_factory.mktemp("night") / "project")
    shutil.copytree(template_home, project.home)
    return make_bench(Tracker.open(project, "unit"), make_pictures(600), make_params())


@pytest.fixture(scope="module")
def ref(bench: TestBench) -> ModelRef:
    """The champion, whose run kept a summary of its data."""
    ref = add_version(bench, "first")
    with bench.tracker.artifact(ref.run_id, "predictions.parquet") as path:
        answers = read_predictions(path)
    profile = profile_with_answers(bench.dataset, answers.rows, answers.probabilities)
    bench.tracker.log_json(ref.run_id, profile.to_json(), PROFILE_FILE)
    return ref


@pytest.fixture
def promotions(bench: TestBench, tmp_path: Path) -> Iterator[Promotions]:
    with closing(Ledger(make_project(tmp_path / "ledger"))) as ledger:
        yield Promotions(ledger, bench.tracker.store.shown_uri)


def decision(version: int, outcome: str = FIRST) -> Decision:
    return Decision(outcome, "it is.", MODEL, version, None, (), None, "0" * 32, 300, 1_760_000_000_000)


@pytest.fixture
def champion(bench: TestBench, ref: ModelRef, promotions: Promotions) -> Champion:
    promotions.promote(decision(ref.version), 0)
    found = find_champion(bench.tracker, promotions, MODEL)
    assert found is not None
    return found


def make_plan(bench: TestBench, key: RunKey) -> Plan:
    return Plan(bench.dataset.ref, Compute("cpu", "fp32", 1), key)


def test_no_champion_and_the_champion_of_the_ledger(
    bench: TestBench, ref: ModelRef, promotions: Promotions, tmp_path: Path
) -> None:
    assert find_champion(bench.tracker, promotions, MODEL) is None
    promotions.promote(decision(ref.version), 0)
    found = find_champion(bench.tracker, promotions, MODEL)
    assert found is not None and found.profile is not None
    assert (found.info.ref.version, found.record.run_id) == (ref.version, ref.run_id)
    assert found.key.digest == found.record.run_key
    assert (found.profile.num_examples, found.profile.num_predicted) == (600, 300)

    gone = copy_version(bench.tracker, ref, tmp_path)
    promotions.promote(dataclasses.replace(decision(gone.version), champion=ref.version), 1)
    bench.tracker.client.delete_model_version(MODEL, str(gone.version))
    with pytest.raises(ModelFileError, match=rf"models:/{MODEL}/{gone.version}: not registered"):
        find_champion(bench.tracker, promotions, MODEL)


def test_the_first_night_trains(bench: TestBench, champion: Champion) -> None:
    assert first_sight(make_plan(bench, champion.key), None) == Sight(True, "there is no champion yet")


def test_the_same_key_does_not_train(bench: TestBench, champion: Champion) -> None:
    found = first_sight(make_plan(bench, champion.key), champion)
    version = champion.info.ref.version
    assert found == Sight(False, f"data, params, code and packages are those of champion {version}")


def test_another_key_trains_and_says_what_changed(bench: TestBench, champion: Champion) -> None:
    parts = champion.key.parts | {"params": "other", "data": "other"}
    details = {"params": {"train.l2": "0.5"}, "data": {"data md5": "e" * 32}}
    found = first_sight(make_plan(bench, RunKey("c" * 64, parts, details)), champion)
    assert found.trains and not found.stopped
    assert found.changes == ("data md5 none -> eeeeeeee", "train.l2 none -> 0.5")
    assert all(change in found.reason for change in found.changes)


def test_what_was_trained_before_is_not_trained_again(bench: TestBench, champion: Champion) -> None:
    tried = add_version(bench, "worse")
    key = bench.tracker.load_key(tried.run_id)
    sight = first_sight(make_plan(bench, key), champion)
    assert sight.trains
    found = seen_before(bench.tracker, make_plan(bench, key), sight)
    assert found.trains and found.changes == sight.changes, "the chain finds it and has it meet the gate"
    assert found.reason == (
        f"version {tried.version} was made of the same data, params, code and packages, and has not met the gate"
    )
    record = bench.tracker.load_record(tried.run_id)
    bench.tracker.finish(tried.run_id, dataclasses.replace(record, decision=decision(tried.version, REFUSED)))
    found = seen_before(bench.tracker, make_plan(bench, key), sight)
    assert not found.trains and found.reason.endswith(", and the gate said refused")


def test_what_nobody_trained_before_is_trained(bench: TestBench, champion: Champion) -> None:
    sight = Sight(True, "why", changes=("a",))
    unknown = make_plan(bench, RunKey("d" * 64, {}))
    assert seen_before(bench.tracker, unknown, sight) is sight
    stays = Sight(False, "why not")
    assert seen_before(bench.tracker, make_plan(bench, champion.key), stays) is stays


def look(
    bench: TestBench,
    champion: Champion,
    dataset: Dataset,
    schedule: NightlyParams = CHANGED,
    sight: Sight = OTHER_DATA,
) -> Sight:
    tonight = make_bench(bench.tracker, dataset, bench.params)
    return look_at_data(bench.tracker, champion, dataset, tonight.splits, bench.params, schedule, sight)


def alike() -> Dataset:
    """Other examples of the same kind."""
    return make_pictures(600, seed=5, md5="5" * 32)


def with_images(dataset: Dataset, images: np.ndarray, md5: str) -> Dataset:
    made = make_dataset(dataset.labels, images)
    return dataclasses.replace(made, ref=dataclasses.replace(made.ref, md5=f"{md5}.dir"))


@pytest.mark.parametrize(("schedule", "trains"), [(CHANGED, True), (DRIFTED, False)])
def test_new_data_like_the_champions_trains_only_where_a_change_is_enough(
    bench: TestBench, champion: Champion, schedule: NightlyParams, trains: bool
) -> None:
    found = look(bench, champion, alike(), schedule)
    assert found.trains == trains and not found.stopped and found.findings == ()
    assert {drift.kind for drift in found.drifts} == {INPUTS, LABELS, PREDICTIONS}
    assert not any(drift.drifted for drift in found.drifts)
    if not trains:
        assert found.reason == (
            f"the data is another, and nothing in it has drifted ({len(found.drifts)} comparisons); "
            "schedule.train_when asks for drift"
        )


def test_the_same_examples_again_have_not_drifted(bench: TestBench, champion: Champion) -> None:
    found = look(bench, champion, part(bench.dataset, np.arange(599, -1, -1), "6" * 32), DRIFTED)
    assert not found.trains and not any(drift.drifted for drift in found.drifts)


def test_other_params_train_whether_or_not_the_data_drifted(bench: TestBench, champion: Champion) -> None:
    sight = dataclasses.replace(OTHER_DATA, changes=(*OTHER_DATA.changes, "train.l2 0.0 -> 0.1"))
    assert look(bench, champion, alike(), DRIFTED, sight).trains


@pytest.mark.parametrize("schedule", [CHANGED, DRIFTED])
def test_drift_trains_and_says_which(bench: TestBench, champion: Champion, schedule: NightlyParams) -> None:
    found = look(bench, champion, with_images(alike(), alike().images // 2, "7" * 32), schedule)
    moved = [drift for drift in found.drifts if drift.drifted]
    assert found.trains and "brightness" in {drift.name for drift in moved}
    largest = max(moved, key=lambda drift: drift.effect)
    assert found.reason == (f"{OTHER_DATA.reason}; {len(moved)} of {len(found.drifts)} drifted: {largest.reason}")


def test_answers_that_shift_are_drift_of_predictions(bench: TestBench, champion: Champion) -> None:
    """Labels stay as they are; what the champion reads says class 0 more often."""
    images = alike().images.copy()
    side = images.shape[1] // 2
    cells = images[:, ::2, ::2, 0].reshape(len(images), side * side)
    first = NUM_CLASSES * list(ERRORS).index("first")
    cells[:200, first : first + NUM_CLASSES] = (200, 0, 0)
    changed = cells.reshape(-1, side, side).repeat(2, axis=1).repeat(2, axis=2)[..., None]
    found = look(bench, champion, with_images(alike(), changed, "8" * 32))
    assert [drift.name for drift in found.drifts if drift.drifted and drift.kind != INPUTS] == ["predicted classes"]
    shifted = next(drift for drift in found.drifts if drift.name == "predicted classes")
    assert shifted.values["num_new"] == 600 and shifted.values["num_old"] == 300


def test_predictions_count_only_where_the_champion_saw_nothing(bench: TestBench, champion: Champion) -> None:
    tonight = joined(part(bench.dataset, np.arange(300), "9" * 32), part(alike(), np.arange(300), "9" * 32), "9" * 32)
    with bench.tracker.artifact(champion.info.ref.run_id, Path(bench.splits.path).name) as path:
        seen = np.load(path)["seen"]
    found = look(bench, champion, tonight)
    predicted = next(drift for drift in found.drifts if drift.name == "predicted classes")
    unseen = int((~np.isin(tonight.content_hash, seen)).sum())
    assert 300 < unseen < 600 and predicted.values["num_new"] == unseen


@pytest.mark.parametrize("schedule", [CHANGED, DRIFTED])
def test_a_class_that_vanished_stops_the_night(bench: TestBench, champion: Champion, schedule: NightlyParams) -> None:
    data = alike()
    found = look(bench, champion, part(data, np.flatnonzero(data.labels != 2), "a" * 32), schedule)
    assert (found.trains, found.stopped) == (False, True)
    assert found.findings[0].name == "vanished class: class 2"
    assert found.reason == f"vanished class: class 2: {found.findings[0].reason}"


def test_a_new_class_stops_the_night_though_the_champion_cannot_answer_it(bench: TestBench, champion: Champion) -> None:
    data = alike()
    names = (*data.ref.class_names, "fox")
    labels = np.where(np.arange(600) < 90, 3, data.labels)
    other = dataclasses.replace(data, labels=labels, ref=dataclasses.replace(data.ref, class_names=names))
    found = look(bench, champion, other)
    assert found.stopped and found.findings[0].name == "new class: fox"
    assert PREDICTIONS not in {drift.kind for drift in found.drifts}


@pytest.mark.parametrize("schedule", [CHANGED, DRIFTED])
def test_a_champion_without_a_summary_is_no_reason_not_to_train(
    bench: TestBench, champion: Champion, schedule: NightlyParams
) -> None:
    found = look(bench, dataclasses.replace(champion, profile=None), alike(), schedule)
    assert found.trains and found.drifts == () and found.findings == ()
    said = f"the run of champion {champion.info.ref.version} kept no summary of its data to compare with"
    assert (said in found.reason) == (schedule is DRIFTED)


def test_a_summary_that_cannot_be_read_counts_as_none(bench: TestBench, promotions: Promotions) -> None:
    broken = add_version(bench, "better")
    promotions.promote(decision(broken.version), 0)
    for values in ({"data_md5": "0"}, {"unknown": 1}, {"features": 3}):
        bench.tracker.log_json(broken.run_id, values, PROFILE_FILE)
        found = find_champion(bench.tracker, promotions, MODEL)
        assert found is not None and found.profile is None


@pytest.mark.parametrize("how", ["weights", "splits"])
def test_a_champion_that_cannot_answer_leaves_inputs_and_labels_to_compare(
    bench: TestBench, champion: Champion, tmp_path: Path, how: str
) -> None:
    copy = copy_version(bench.tracker, champion.info.ref, tmp_path)
    if how == "weights":
        (model_folder(bench.tracker, copy) / "weights.safetensors").unlink()
    else:
        copy = dataclasses.replace(copy, run_id=bench.tracker.client.create_run("0").info.run_id)
    broken = dataclasses.replace(champion, info=dataclasses.replace(champion.info, ref=copy))
    found = look(bench, broken, with_images(alike(), alike().images // 2, "7" * 32))
    assert found.trains and any(drift.drifted for drift in found.drifts)
    assert {drift.kind for drift in found.drifts} == {INPUTS, LABELS}


def test_a_profile_counts_the_answers_that_it_was_given() -> None:
    """Row 5 is a copy of row 1, so its answer is known; rows 0 and 4 were not asked."""
    dataset = make_dataset([0, 1, 2, 0, 1, 1], copies_of=[0, 1, 2, 3, 4, 1])
    rows = np.array([3, 1, 2])
    answers = np.array([[0.1, 0.2, 0.7], [0.1, 0.6, 0.3], [0.8, 0.1, 0.1]])
    profile = profile_with_answers(dataset, rows, answers)
    assert profile.num_examples == 6
    assert profile.predicted_counts == {"class 0": 1, "class 1": 2, "class 2": 1}
    assert profile.num_predicted == 4
    assert profile.top_probabilities == (0.6, 0.6, 0.7, 0.8)
