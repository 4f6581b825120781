"""A model's champions follow each other in one line, whoever promotes at once and dies at it, and nobody edits it."""

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from assay.errors import AssayError
from assay.project import Project
from assay.records import KEPT, REFUSED, Look, Promotion
from assay.registry.aliases import sync_aliases
from assay.registry.ledger import DATABASE_VARIABLE, Ledger
from assay.registry.promotions import Promotions, StaleDecisionError, champions_in_line
from tests.registry.crowd import (
    MODEL,
    NUM_KILLS,
    REGISTRY,
    VERSIONS_EACH,
    FileTracker,
    make_decision,
    open_tracker,
    promote,
    run_crowd,
)
from tests.registry.postgres import database, postgres_folder

__all__ = ["database", "postgres_folder"]

TEST_SET = "t" * 32
BUDGET, ALPHA = 20, 0.05


@pytest.fixture
def ledger(project: Project, database: str) -> Iterator[Ledger]:
    with closing(Ledger(project)) as ledger:
        yield ledger


@pytest.fixture
def promotions(ledger: Ledger) -> Promotions:
    return Promotions(ledger, REGISTRY)


def assert_a_line(history: tuple[Promotion, ...]) -> None:
    assert [line.fence for line in history] == list(range(1, len(history) + 1))
    assert [line.previous for line in history] == [None, *(line.version for line in history[:-1])][: len(history)]


def test_champions_follow_each_other_with_what_was_decided(promotions: Promotions) -> None:
    assert promotions.champion(MODEL) is None and promotions.history(MODEL) == ()
    first = promotions.promote(make_decision(1, None), expected_fence=0)
    better = make_decision(3, first)
    second = promotions.promote(better, expected_fence=1)
    forced = promotions.promote(
        make_decision(4, second, outcome=REFUSED, forced_reason="the fair is tomorrow"), expected_fence=2
    )
    assert promotions.history(MODEL) == (first, second, forced)
    assert promotions.champion(MODEL) == forced
    assert [line.action for line in promotions.history(MODEL)] == ["first champion", "promoted", "forced"]
    assert forced.reason == "the fair is tomorrow"
    assert_a_line(promotions.history(MODEL))
    assert second.decision_id is not None and promotions.decision(second.decision_id) == better
    assert promotions.decision(999) is None


def test_decisions_that_move_nothing_are_kept_too(promotions: Promotions) -> None:
    first = promotions.promote(make_decision(1, None), 0)
    kept, refused = make_decision(2, first, outcome=KEPT), make_decision(3, first, outcome=REFUSED)
    ids = [promotions.record_decision(decision) for decision in (kept, refused, kept)]
    assert promotions.decisions(MODEL)[:-1] == tuple(reversed(list(zip(ids, (kept, refused, kept), strict=True))))
    assert promotions.decisions(MODEL, version=3) == ((ids[1], refused),)
    assert promotions.champion(MODEL) == first
    assert promotions.decisions("another") == ()


def test_registries_and_models_have_lines_of_their_own(ledger: Ledger, promotions: Promotions) -> None:
    first = promotions.promote(make_decision(1, None), 0)
    elsewhere = Promotions(ledger, "http://127.0.0.1:5000")
    assert elsewhere.champion(MODEL) is None and elsewhere.decisions(MODEL) == ()
    assert first.decision_id is not None and elsewhere.decision(first.decision_id) is None
    assert elsewhere.promote(make_decision(7, None), 0).fence == 1
    assert promotions.promote(make_decision(2, None, model_name="another"), 0).fence == 1
    assert promotions.history(MODEL) == (first,)


def test_a_decision_against_an_older_champion_is_void(promotions: Promotions) -> None:
    first = promotions.promote(make_decision(1, None), 0)
    second = promotions.promote(make_decision(2, first), 1)
    stale = (
        (make_decision(3, first), 1),
        (make_decision(3, None), 0),
        (make_decision(3, first), 2),
        (make_decision(3, second), 1),
        (make_decision(3, second), 3),
    )
    for decision, fence in stale:
        with pytest.raises(StaleDecisionError) as caught:
            promotions.promote(decision, fence)
        assert caught.value.champion == second
    assert promotions.history(MODEL) == (first, second) and len(promotions.decisions(MODEL)) == 2
    with pytest.raises(AssayError, match=r"models:/digits-cnn/2: is the champion already"):
        promotions.promote(make_decision(2, second), 2)


def test_one_champion_that_came_back_is_another_fence(promotions: Promotions) -> None:
    """What was decided against version 1 does not hold after 2 came and went."""
    first = promotions.promote(make_decision(1, None), 0)
    promotions.promote(make_decision(2, first), 1)
    promotions.rollback(MODEL)
    with pytest.raises(StaleDecisionError):
        promotions.promote(make_decision(3, first), 1)


def test_rolling_back_goes_back_and_never_forth(promotions: Promotions) -> None:
    for version in (1, 2, 3):
        promote(promotions, version)
    back = promotions.rollback(MODEL, reason="3 fails on sevens")
    assert (back.version, back.previous, back.action, back.reason) == (2, 3, "rolled back", "3 fails on sevens")
    assert back.decision_id is None
    promote(promotions, 4)
    assert [promotions.rollback(MODEL).version for _ in range(2)] == [2, 1]
    with pytest.raises(AssayError, match=r"models:/digits-cnn/1: no champion came before it.*been: 2, 4, 3\."):
        promotions.rollback(MODEL)
    assert_a_line(promotions.history(MODEL))


def test_rolling_back_to_a_version_by_name(promotions: Promotions) -> None:
    for version in (1, 2, 3):
        promote(promotions, version)
    promotions.record_decision(make_decision(9, promotions.champion(MODEL), outcome=REFUSED))
    assert promotions.rollback(MODEL, to=1).version == 1
    with pytest.raises(AssayError, match="/1: no champion came before it"):
        promotions.rollback(MODEL)
    assert promotions.rollback(MODEL, to=3).version == 3
    assert promotions.rollback(MODEL).version == 1
    with pytest.raises(AssayError, match="/1: is the champion already"):
        promotions.rollback(MODEL, to=1)
    with pytest.raises(AssayError, match="/9: has never been champion"):
        promotions.rollback(MODEL, to=9)
    with pytest.raises(AssayError, match="another: has no champion to roll back from"):
        promotions.rollback("another")


def test_rolling_back_passes_over_versions_that_are_gone(promotions: Promotions) -> None:
    for version in (1, 2, 3):
        promote(promotions, version)
    with pytest.raises(AssayError, match="/2: is not in the registry any more"):
        promotions.rollback(MODEL, to=2, versions={1, 3})
    with pytest.raises(AssayError, match="/3: no champion came before it"):
        promotions.rollback(MODEL, versions={3})
    assert promotions.rollback(MODEL, versions={1, 3}).version == 1


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        ([], ()),
        ([1, 2, 3], (1, 2, 3)),
        ([1, 2, 3, -2], (1, 2)),
        ([1, 2, 3, -2, -1], (1,)),
        ([1, 2, 3, -1, -3, 4], (1, 3, 4)),
        ([1, 2, 1, 3, -1], (1, 2, 1)),
    ],
)
def test_the_line_of_champions(steps: list[int], line: tuple[int, ...]) -> None:
    """A negative step is a rollback to that version."""
    history = [
        Promotion(MODEL, fence, abs(step), None, "rolled back" if step < 0 else "promoted", "", 0)
        for fence, step in enumerate(steps, start=1)
    ]
    assert champions_in_line(history) == line


def take_look(
    promotions: Promotions, version: int, champion: int = 1, budget: int = BUDGET, alpha: float = ALPHA
) -> Look:
    return promotions.take_look(TEST_SET, MODEL, version, champion, budget, alpha)


def test_a_comparison_is_one_look_however_often_it_is_begun(ledger: Ledger, promotions: Promotions) -> None:
    first = take_look(promotions, 2)
    assert first == Look(TEST_SET, 1, BUDGET, ALPHA * 21 / 20 / 2)
    assert take_look(promotions, 3) == Look(TEST_SET, 2, BUDGET, ALPHA * 21 / 20 / 6)
    assert take_look(promotions, 2, budget=5, alpha=0.5) == first
    assert take_look(promotions, 2, champion=3).number == 3
    assert promotions.take_look(TEST_SET, "another", 2, 1, BUDGET, ALPHA).number == 4
    assert promotions.take_look("u" * 32, MODEL, 2, 1, BUDGET, ALPHA).number == 1
    assert Promotions(ledger, "http://127.0.0.1:5000").take_look(TEST_SET, MODEL, 2, 1, BUDGET, ALPHA).number == 1


def test_looks_past_the_budget_are_not_counted(promotions: Promotions) -> None:
    assert [take_look(promotions, version, budget=2).is_spent for version in (2, 3, 4, 5)] == [False, False, True, True]
    assert take_look(promotions, 4, budget=2) == Look(TEST_SET, 3, 2, 0.0)
    assert not take_look(promotions, 3, budget=1).is_spent


def test_a_budget_that_is_raised_gives_no_alpha_back(promotions: Promotions) -> None:
    taken = [take_look(promotions, version, budget=2) for version in (2, 3)]
    assert sum(look.alpha for look in taken) == pytest.approx(ALPHA)
    assert take_look(promotions, 4, budget=100).is_spent
    more = take_look(promotions, 4, budget=100, alpha=0.06)
    assert not more.is_spent and more.alpha <= 0.06 - ALPHA


@pytest.mark.parametrize("table", ["decisions", "promotions", "looks"])
def test_the_database_refuses_to_change_lines(
    ledger: Ledger, promotions: Promotions, database: str, table: str
) -> None:
    promote(promotions, 1)
    promote(promotions, 2)
    take_look(promotions, 3)
    changes = [f"UPDATE assay_{table} SET version = 9", f"DELETE FROM assay_{table}"]
    changes += (
        [f"TRUNCATE assay_{table}"]
        if database == "postgresql"
        else [f"INSERT OR REPLACE INTO assay_{table} SELECT * FROM assay_{table}"]
    )
    for change in changes:
        with pytest.raises(IntegrityError, match="never changed"), ledger.writing("test") as connection:
            connection.exec_driver_sql(change)
    with ledger.reading() as connection:
        assert connection.exec_driver_sql(f"SELECT min(version), max(version) FROM assay_{table}").one() in [
            (1, 2),
            (3, 3),
        ]


def prepare(project: Project, database: str, num_versions: int) -> str:
    """Register versions in MLflow where the ledger is SQLite; returns the kind of registry."""
    if database == "postgresql":
        return "file"
    client = open_tracker(project, "mlflow").client
    client.create_registered_model(MODEL)
    for _ in range(num_versions):
        client.create_model_version(MODEL, f"file://{project.home}/artifacts/none")
    return "mlflow"


def assert_whole(project: Project, kind: str, versions: set[int]) -> None:
    """Every version was champion once, each with its decision, and the aliases point at the last ones."""
    with closing(Ledger(project)) as ledger:
        promotions = Promotions(ledger, REGISTRY)
        history = promotions.history(MODEL)
        assert_a_line(history)
        assert sorted(line.version for line in history) == sorted(versions)
        decided = dict(promotions.decisions(MODEL))
        assert {line.decision_id for line in history} == set(decided)
        for line in history:
            assert line.decision_id is not None
            decision = decided[line.decision_id]
            assert (decision.version, decision.champion) == (line.version, line.previous)
        aliases = open_tracker(project, kind).client.get_registered_model(MODEL).aliases
    assert int(aliases["champion"]) == history[-1].version
    assert int(aliases["previous"]) == history[-2].version


@pytest.mark.slow
def test_16_processes_that_promote_at_once_make_one_line(project: Project, database: str) -> None:
    versions = set(range(1, 16 * VERSIONS_EACH + 1))
    kind = prepare(project, database, len(versions))
    ends = run_crowd("promote", project.root, 16, kind)
    assert {code for code, _ in ends} == {0}, ends
    assert sum(answer for _, answer in ends) > 0, "nothing was ever decided against an older champion"
    assert_whole(project, kind, versions)


@pytest.mark.slow
def test_processes_killed_at_random_leave_one_line(project: Project, database: str) -> None:
    versions = set(range(1, 8 * VERSIONS_EACH + 1))
    kind = prepare(project, database, len(versions))
    ends = run_crowd("kill", project.root, 8, kind)
    codes = [code for code, _ in ends]
    assert set(codes) == {0, -signal.SIGKILL} and codes.count(0) == 8, ends
    assert codes.count(-signal.SIGKILL) >= NUM_KILLS // 2
    assert_whole(project, kind, versions)


@pytest.mark.slow
def test_a_process_killed_at_any_statement_leaves_a_line_and_aliases_that_follow(
    project: Project, database: str
) -> None:
    """With aliases in a file, so that it takes seconds; the ones killed at random set MLflow's own."""
    *killed, last = run_crowd("die", project.root, 2, "file")
    assert {code for code, _ in killed} == {-signal.SIGKILL} and last[0] == 0, last
    assert len(killed) >= 15
    assert_whole(project, "file", {1, 2})


def test_processes_that_look_at_once_count_each_comparison_once(project: Project, database: str) -> None:
    ends = run_crowd("look", project.root, 16)
    assert {code for code, _ in ends} == {0}, ends
    numbers = [answer for _, answer in ends]
    assert all(number[0] == number[1] for number in numbers)
    assert [first[0] for first in numbers[::2]] == [second[0] for second in numbers[1::2]]
    assert {number[0] for number in numbers} == set(range(1, 9))


def test_the_stand_in_for_mlflow_follows_the_ledger(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DATABASE_VARIABLE, raising=False)
    promotions = Promotions(Ledger(project), REGISTRY)
    promote(promotions, 1)
    tracker: object = FileTracker(tmp_path)
    assert sync_aliases(tracker, promotions, MODEL).champion == 1
