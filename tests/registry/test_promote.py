"""The gate with real registered versions: whatever is wrong with one is said by name, and nothing moves by mistake."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from assay.data.loading import Dataset
from assay.data.splits import load_split
from assay.errors import AssayError, DataError, ModelFileError
from assay.params import Params
from assay.project import Project
from assay.records import FIRST, KEPT, PROMOTED, REFUSED, Decision, ModelRef
from assay.registry import promote
from assay.registry.contest import TestBench, examine
from assay.registry.load import find_version
from assay.registry.promote import OUTCOME_TAG, REASON_TAG, find_seed_sd, meet_gate
from assay.registry.promotions import Promotions
from assay.tracking.ablations import AblationRuns
from tests.registry.asked import Versions, aliases, ask, bench, champion, failed, promotions, rule, versions, with_gate
from tests.registry.gated import (
    MODEL,
    add_version,
    joined,
    make_bench,
    make_pictures,
    part,
    read_decision,
)
from tests.tracking.test_ablations import finish, log_all, open_ablation, trial

__all__ = ["ask", "bench", "champion", "promotions", "versions"]


def test_the_first_sound_version_becomes_champion(
    bench: TestBench, versions: Versions, ask: Callable[..., Decision], promotions: Promotions
) -> None:
    decision = ask(versions["first"], flow_run_id="flow 7")
    assert (decision.outcome, decision.champion, decision.look, decision.num_test) == (FIRST, None, None, 600)
    assert decision.flow_run_id == "flow 7"
    assert failed(decision) == [] and rule(decision, "baseline: majority_class") == "passed"
    (line,) = promotions.history(MODEL)
    assert (line.version, line.action, line.reason) == (versions["first"].version, "first champion", decision.reason)
    assert aliases(bench) == {"champion": versions["first"].version}
    assert ask(versions["first"]) == decision and len(promotions.history(MODEL)) == 1


def test_a_first_version_that_is_no_better_than_guessing_is_no_champion(
    versions: Versions, ask: Callable[..., Decision], promotions: Promotions
) -> None:
    decision = ask(versions["shuffled"])
    assert (decision.outcome, failed(decision)) == (REFUSED, ["baseline: majority_class"])
    assert promotions.champion(MODEL) is None


@pytest.mark.usefixtures("champion")
def test_an_equal_challenger_does_not_replace_the_champion(
    bench: TestBench, versions: Versions, ask: Callable[..., Decision]
) -> None:
    decision = ask(versions["same"])
    assert (decision.outcome, decision.champion) == (KEPT, versions["first"].version)
    assert rule(decision, "superiority") == "failed"
    assert decision.look is not None and decision.look.number == 1
    assert aliases(bench) == {"champion": versions["first"].version, "challenger": versions["same"].version}


def test_a_better_challenger_is_promoted(
    bench: TestBench, versions: Versions, champion: ModelRef, ask: Callable[..., Decision], promotions: Promotions
) -> None:
    decision = ask(versions["better"])
    assert decision.outcome == PROMOTED
    found = next(rule for rule in decision.rules if rule.name == "superiority").values
    rows = load_split(bench.splits).test
    labels = np.asarray(bench.dataset.labels)[rows]
    answers = {
        name: (examine(bench, find_version(bench.tracker, MODEL, versions[name].version)).probabilities)
        for name in ("better", "first")
    }
    rights = {name: float((found.argmax(axis=1) == labels).mean()) for name, found in answers.items()}
    assert (found["challenger"], found["champion"]) == pytest.approx((rights["better"], rights["first"]))
    assert [line.version for line in promotions.history(MODEL)] == [champion.version, versions["better"].version]
    found_now = aliases(bench)
    assert (found_now["champion"], found_now["previous"]) == (versions["better"].version, champion.version)


@pytest.mark.usefixtures("champion")
def test_a_challenger_that_lost_a_class_is_refused_with_its_name(
    versions: Versions, ask: Callable[..., Decision], promotions: Promotions
) -> None:
    decision = ask(versions["worse"])
    assert decision.outcome == REFUSED
    assert "class: class 2" in failed(decision) and "class: class 0" not in failed(decision)
    assert "class: class 2" in decision.reason
    assert promotions.champion(MODEL).version == versions["first"].version  # type: ignore[union-attr]


@pytest.mark.usefixtures("champion")
@pytest.mark.parametrize(("field", "name"), [("constant", "not collapsed"), ("shuffled", "baseline: majority_class")])
def test_models_that_learned_nothing_are_refused(
    versions: Versions, ask: Callable[..., Decision], field: str, name: str
) -> None:
    decision = ask(versions[field])
    assert decision.outcome == REFUSED and name in failed(decision)
    assert decision.reason.startswith(f"{name}: ")


def test_a_version_that_is_not_there_is_named_with_those_that_are(
    bench: TestBench, versions: Versions, promotions: Promotions
) -> None:
    with pytest.raises(ModelFileError, match=rf"models:/{MODEL}/999: not registered in .*Versions of {MODEL}: .*1"):
        meet_gate(bench, promotions, MODEL, 999)
    with pytest.raises(ModelFileError, match=r"models:/nobody/1: not registered in .*Versions of nobody: none"):
        meet_gate(bench, promotions, "nobody", 1)
    assert promotions.decisions(MODEL) == ()


def renamed(dataset: Dataset, names: tuple[str, ...], md5: str) -> Dataset:
    return dataclasses.replace(dataset, ref=dataclasses.replace(dataset.ref, class_names=names, md5=f"{md5}.dir"))


@pytest.mark.usefixtures("champion")
def test_another_set_of_classes_is_refused_and_names_them(
    bench: TestBench, versions: Versions, ask: Callable[..., Decision]
) -> None:
    other = renamed(bench.dataset, ("class 0", "class 1", "[red] fox"), "c" * 32)
    of_others = make_bench(bench.tracker, other, bench.params)
    stale = ask(versions["better"], of_others)
    assert (stale.outcome, failed(stale), stale.look) == (REFUSED, ["integrity: classes"], None)
    assert "'[red] fox', 'class 2'" in stale.reason

    decision = ask(add_version(of_others, "better", "fox"), of_others)
    assert (decision.outcome, failed(decision)) == (REFUSED, ["champion's classes"])
    assert "'[red] fox' only the challenger, 'class 2' only the champion" in decision.reason


def test_a_challenger_that_was_trained_on_test_examples_is_refused(
    bench: TestBench, ask: Callable[..., Decision], tmp_path: Path
) -> None:
    params = bench.params.model_copy(update={"split": bench.params.split.model_copy(update={"seed": 9})})
    elsewhere = make_bench(bench.tracker, bench.dataset, params)
    ref = add_version(bench, "better", "cheat", splits=elsewhere.splits)
    seen = np.isin(
        load_split(bench.splits).test, np.setdiff1d(np.arange(1200), load_split(elsewhere.splits).test)
    ).sum()
    decision = ask(ref)
    assert (decision.outcome, failed(decision)) == (REFUSED, ["integrity: unseen test"])
    assert f"{seen:,} of 600 test examples were in its training data" in decision.reason


@pytest.fixture
def moved(bench: TestBench) -> TestBench:
    """Data of a later day: 600 examples of before, and 600 that nobody has seen."""
    kept = part(bench.dataset, np.arange(600), "9" * 32)
    return make_bench(bench.tracker, joined(kept, make_pictures(600, seed=5), "1" * 32), bench.params)


def test_data_that_moved_is_answered_anew_without_what_the_champion_was_trained_on(
    bench: TestBench, champion: ModelRef, moved: TestBench, ask: Callable[..., Decision]
) -> None:
    ref = add_version(moved, "better", "of today")
    decision = ask(ref, moved)
    trained_on = np.setdiff1d(np.arange(1200), load_split(bench.splits).test)
    fair = ~np.isin(moved.rows, trained_on[trained_on < 600])
    assert 30 < fair.sum() < 600
    assert (decision.outcome, decision.champion, decision.num_test) == (PROMOTED, champion.version, fair.sum())
    labels = np.asarray(moved.dataset.labels)[moved.rows][fair]
    answers = {
        number: examine(moved, find_version(bench.tracker, MODEL, number)).probabilities
        for number in (champion.version, ref.version)
    }
    right = {number: float((found[fair].argmax(axis=1) == labels).mean()) for number, found in answers.items()}
    values = {rule.name: rule.values for rule in decision.rules}
    assert values["superiority"]["champion"] == pytest.approx(right[champion.version])
    assert values["baseline: majority_class"]["value"] == pytest.approx(right[ref.version])
    assert decision.look is not None and decision.look.test_set == moved.test_set


def test_too_few_fair_examples_move_nothing(
    bench: TestBench, champion: ModelRef, ask: Callable[..., Decision], promotions: Promotions
) -> None:
    """The later data is what the champion was trained on: its test examples say nothing about it."""
    trained_on = np.setdiff1d(np.arange(1200), load_split(bench.splits).test)
    today = make_bench(bench.tracker, part(bench.dataset, trained_on, "2" * 32), bench.params)
    ref = add_version(today, "better", "of little")
    with pytest.raises(DataError, match=rf"version {champion.version}: of 300 test examples only 0 .* at least 30"):
        ask(ref, today)
    assert promotions.decisions(MODEL, ref.version) == () and promotions.champion(MODEL).version == champion.version  # type: ignore[union-attr]

    forced = ask(ref, today, forced_reason="the old data was withdrawn")
    assert forced.num_test == 300 and "300 of 300 test examples were in the champion's training data" in str(forced)
    assert promotions.champion(MODEL).version == ref.version  # type: ignore[union-attr]


@pytest.mark.usefixtures("champion")
def test_asking_again_gives_the_same_decision_and_no_second_look(
    bench: TestBench, versions: Versions, ask: Callable[..., Decision], promotions: Promotions
) -> None:
    first = ask(versions["same"])
    assert ask(versions["same"]) == first
    assert len(promotions.decisions(MODEL, versions["same"].version)) == 1
    assert ask(versions["worse"]).look.number == 2  # type: ignore[union-attr]


@pytest.mark.usefixtures("champion")
def test_other_rules_are_asked_anew_within_the_same_look(
    bench: TestBench, versions: Versions, ask: Callable[..., Decision], promotions: Promotions
) -> None:
    kept = ask(versions["same"])
    floored = ask(versions["same"], with_gate(bench, floors={"accuracy": 0.99}))
    assert (kept.outcome, floored.outcome) == (KEPT, REFUSED)
    assert "floor: accuracy" in failed(floored)
    assert floored.look == kept.look
    assert ask(versions["same"]).outcome == KEPT
    assert len(promotions.decisions(MODEL, versions["same"].version)) == 3


def test_another_champion_in_between_is_compared_with(
    bench: TestBench,
    versions: Versions,
    champion: ModelRef,
    ask: Callable[..., Decision],
    promotions: Promotions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a version is compared with the old champion, another one is promoted."""
    write_down, interrupted = promote._write_down, []

    def overtaken(*arguments: object) -> None:
        if not interrupted:
            interrupted.append(arguments)
            with monkeypatch.context() as patch:
                patch.setattr(promote, "_write_down", write_down)
                assert ask(versions["better"]).outcome == PROMOTED
        write_down(*arguments)  # type: ignore[arg-type]

    twin = add_version(bench, "better", "twin")
    monkeypatch.setattr(promote, "_write_down", overtaken)
    decision = ask(twin)
    assert len(interrupted) == 1
    assert (decision.outcome, decision.champion) == (KEPT, versions["better"].version)
    assert [line.version for line in promotions.history(MODEL)] == [champion.version, versions["better"].version]


def test_a_person_can_promote_whatever_the_gate_finds(
    bench: TestBench, versions: Versions, champion: ModelRef, ask: Callable[..., Decision], promotions: Promotions
) -> None:
    refused = ask(versions["worse"])
    forced = ask(versions["worse"], forced_reason="class 2 is [/gone] anyway")
    assert (forced.outcome, forced.forced_reason) == (REFUSED, "class 2 is [/gone] anyway")
    assert (failed(forced), forced.look) == (failed(refused), refused.look)
    head = promotions.champion(MODEL)
    assert head is not None and (head.action, head.reason) == ("forced", "class 2 is [/gone] anyway")
    assert aliases(bench)["champion"] == versions["worse"].version
    info = find_version(bench.tracker, MODEL, versions["worse"].version)
    assert (info.tags[OUTCOME_TAG], info.tags[REASON_TAG]) == ("forced", "class 2 is [/gone] anyway")
    kept = read_decision(bench.tracker, versions["worse"].run_id)
    assert Decision.from_json(kept) == forced
    with pytest.raises(AssayError, match="is the champion already"):
        ask(versions["worse"], forced_reason="once more")


@pytest.mark.usefixtures("champion")
def test_a_spent_budget_keeps_the_champion_and_asks_for_fresh_test_data(
    bench: TestBench, versions: Versions, ask: Callable[..., Decision]
) -> None:
    one_look = with_gate(bench, max_looks=1)
    assert ask(versions["same"], one_look).look.number == 1  # type: ignore[union-attr]
    decision = ask(versions["better"], one_look)
    assert (decision.outcome, failed(decision)) == (KEPT, ["looks"])
    assert decision.look is not None and decision.look.is_spent
    assert "Add new test examples and pin them" in decision.reason
    assert not any(rule.name == "superiority" for rule in decision.rules), "nothing of the comparison is seen"


@pytest.mark.usefixtures("champion")
def test_mlflow_says_what_was_decided(bench: TestBench, versions: Versions, ask: Callable[..., Decision]) -> None:
    decision = ask(versions["same"])
    info = find_version(bench.tracker, MODEL, versions["same"].version)
    run_tags = bench.tracker.tags(versions["same"].run_id)
    for tags in (info.tags, run_tags):
        assert (tags[OUTCOME_TAG], tags[REASON_TAG]) == (KEPT, decision.reason)
    assert Decision.from_json(read_decision(bench.tracker, versions["same"].run_id)) == decision


def test_the_spread_of_seeds_comes_from_the_params_or_from_the_latest_ablation(
    project: Project, tmp_path: Path
) -> None:
    params = Params.model_validate({"registry": {"experiment": "unit"}, "gate": {"metric": "f1_macro"}})
    assert find_seed_sd(project, params) is None
    runs = AblationRuns(project, "unit")
    opened = open_ablation(runs)
    trials = log_all(runs, opened, tmp_path)
    finish(runs, opened, [*trials, trial(tmp_path, "baseline", 7, "failed")], tmp_path)
    assert find_seed_sd(project, params) == pytest.approx(np.std([0.8, 0.81], ddof=1))
    other = params.model_copy(update={"gate": params.gate.model_copy(update={"metric": "recall_macro"})})
    assert find_seed_sd(project, other) is None, "no trial measured it"
    given = params.model_copy(update={"gate": params.gate.model_copy(update={"seed_sd": 0.0})})
    assert find_seed_sd(project, given) == 0.0


@pytest.mark.usefixtures("champion")
def test_the_spread_of_seeds_widens_the_interval(
    bench: TestBench, versions: Versions, ask: Callable[..., Decision]
) -> None:
    def low(decision: Decision) -> float:
        return next(rule for rule in decision.rules if rule.name == "superiority").values["low"]

    sure, unsure = (ask(versions["same"], with_gate(bench, seed_sd=sd)) for sd in (0.0, 0.02))
    assert low(unsure) < low(sure)
