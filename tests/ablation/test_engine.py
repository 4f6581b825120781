import random
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

import pytest

from assay.ablation.analysis import STOPPED, Analysis
from assay.ablation.design import make_design
from assay.ablation.engine import Engine
from assay.ablation.halving import go_on
from assay.ablation.trial_job import TrialJob
from assay.params import RunParams
from assay.records import BASELINE, Trial
from tests.ablation.simulated import NUM_CLASSES, AnyOrder, Waits, World, engine_of, ten_levels

NAMES = [f"l2={round(0.001 * number, 3)}" for number in range(1, 11)]


def world_of(folder: Path, step: float = 0.02, number: int = 0) -> World:
    """The first level is best, the last is worst, the baseline in the middle."""
    accuracy = {name: 0.9 + step * (4.5 - place) for place, name in enumerate(NAMES)} | {BASELINE: 0.9}
    folder.mkdir(exist_ok=True)
    return World(folder, accuracy, number=number)


def test_without_pruning_every_trial_is_trained_once_to_the_end(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    engine, analysis, over = engine_of(world, ten_levels(prune=False))
    engine.train()
    assert len(world.jobs) == len(over) == 11 * 4 == len(engine.trained)
    assert {job.looks for job in world.jobs} == {(9,)}
    assert Counter((trial.variant, trial.seed) for trial in over).most_common(1)[0][1] == 1
    assert engine.fates == {}
    verdicts = {verdict.name: verdict for verdict in analysis.verdicts({})}
    assert verdicts[NAMES[0]].verdict == "helps"
    assert verdicts[NAMES[-1]].verdict == "hurts"


def test_pruning_stops_a_level_with_all_its_seeds_and_never_the_baseline(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    engine, _, over = engine_of(world, ten_levels())
    engine.train()
    assert engine.setup.looks[engine.setup.design.variants[0].name] == (3, 4, 5, 7, 9)
    alive = [variant.name for variant in engine.setup.design.variants if variant.name not in engine.fates]
    assert BASELINE in alive
    assert NAMES[0] in alive
    assert len(alive) == 1 + 1  # of 10, 5 go on, then 3, 2 and 1
    for variant in engine.setup.design.variants:
        lengths = {engine.trials[(variant.name, seed)].num_epochs for seed in engine.setup.design.seeds}
        assert len(lengths) == 1, "all seeds of a level go equally far"
    assert Counter(t.num_epochs for t in over) == {3: 5 * 4, 4: 2 * 4, 5: 4, 7: 4, 9: 2 * 4}
    assert len(engine.trained) == 11 * 4, "a trial that goes on is one trial"
    assert sum(t.num_epochs for t in over) == engine.setup.num_epochs


@pytest.mark.parametrize("number", range(12))
def test_pruning_changes_no_comparison_of_the_levels_that_stay(tmp_path: Path, number: int) -> None:
    """On simulated curves: a survivor's difference is that of the full grid, and so is its verdict."""
    found = {}
    for name, prune in (("full", False), ("pruned", True)):
        world = world_of(tmp_path / name, step=0.008, number=number)
        engine, analysis, _ = engine_of(world, ten_levels(prune=prune))
        engine.train()
        found[name] = {verdict.name: verdict for verdict in analysis.verdicts(engine.fates)}
    stayed = [name for name, verdict in found["pruned"].items() if verdict.verdict != "stopped"]
    assert 1 <= len(stayed) <= 3
    for name in stayed:
        pruned, full = found["pruned"][name], found["full"][name]
        assert (pruned.difference, pruned.num_seeds) == (full.difference, full.num_seeds)
        assert pruned.verdict == full.verdict
        assert pruned.p == pytest.approx(full.p)
        assert pruned.p_holm >= full.p_holm - 1e-12, "a level that was stopped makes no other claim easier"
    for name in set(found["full"]) - set(stayed):
        assert found["pruned"][name].reason.startswith("Stopped after epoch")


def test_training_ends_at_once_with_what_it_depends_on(tmp_path: Path) -> None:
    engine, _, over = engine_of(world_of(tmp_path), ten_levels())
    needed: Future[None] = Future()
    under_way: list[Future[list[Trial]]] = []

    def submit(jobs: list[TrialJob]) -> Future[list[Trial]]:
        under_way.append(Future())  # never over
        if len(under_way) == 3:
            needed.set_exception(OSError("refused"))
        return under_way[-1]

    engine.submit = submit
    engine.depend_on(needed)
    with pytest.raises(OSError, match="refused") as raised:
        engine.train()
    assert raised.value is needed.exception()
    assert len(under_way) == 2 * engine.num_workers, "no more than was handed over already"
    assert over == []


@pytest.mark.parametrize("number", [1, 20, 44])
def test_trials_are_trained_until_they_can_be_handed_on(tmp_path: Path, number: int) -> None:
    world = world_of(tmp_path)
    engine, _, _ = engine_of(world, ten_levels(prune=False))
    trains = AnyOrder(world, lambda under_way: 0)
    engine._done = Waits(trains)
    needed: Future[str] = Future()
    handed_over: list[TrialJob] = []
    num_done: list[int] = []

    def submit(jobs: list[TrialJob]) -> Future[list[Trial]]:
        handed_over.extend(jobs)
        if len(handed_over) >= number and not needed.done():
            assert num_done == [], "no trial is handed on yet"
            needed.set_result("opened")
        return trains.submit(jobs)

    def keep(trial: Trial) -> Trial:
        num_done.append(len(world.jobs))
        return trial

    engine.submit, engine.on_trial = submit, keep
    engine.depend_on(needed)
    engine.train()
    assert len(num_done) == 11 * 4
    assert num_done[0] < 44, "they are handed on as soon as they can be"


def stopped_at_barriers(engine: Engine, world: World, falls: Mapping[str, int]) -> dict[str, int]:
    """Decide look by look when all are there, as a reference: variant -> epoch at which it is stopped.

    Args:
        engine: For its setup.
        world: Where trials come from.
        falls: Variant -> number of the look that it fails to get to.
    """
    setup, looks = engine.setup, engine.setup.looks
    analysis = Analysis(setup.design, setup.params, 700)
    for variant in setup.design.variants:
        for seed in setup.design.seeds:
            analysis.add(world.train(setup.job(variant, seed, looks[variant.name])), NUM_CLASSES)
    alive, stopped = [name for name in looks if name != BASELINE], {}
    for number in range(len(looks[BASELINE]) - 1):
        alive = [name for name in alive if falls.get(name) != number]
        scores = {name: analysis.score(name, looks[name][number]) for name in alive}
        kept = go_on(scores, setup.params.reduction)
        stopped |= {name: looks[name][number] for name in alive if name not in kept}
        alive = list(kept)
    return stopped


def stopped_by(engine: Engine) -> dict[str, int]:
    """Variant -> epoch at which an engine stopped it."""
    words = {name: reason.split() for name, (fate, reason) in engine.fates.items() if fate == STOPPED}
    return {name: int(reason[3].rstrip(":")) for name, reason in words.items()}


@pytest.mark.parametrize("reduction", [2, 3])
@pytest.mark.parametrize("number", range(15))
def test_in_whatever_order_trials_end_the_same_variants_go_on(tmp_path: Path, number: int, reduction: int) -> None:
    """With many ties, and with variants that fail before a look, or after they went on from it early."""
    chance = random.Random(number)
    names = list(NAMES)
    chance.shuffle(names)
    accuracy = {name: 0.9 - 0.02 * (place // 3) for place, name in enumerate(names)} | {BASELINE: 0.9}
    world = World(tmp_path, accuracy, num_val=30, number=number)
    engine, _, over = engine_of(world, ten_levels(reduction=reduction, num_seeds=2))
    falls = {name: chance.randrange(2) for name in chance.sample(NAMES, number % 4)}
    expected = stopped_at_barriers(engine, world, falls)
    world.faults = {(name, 1): [*[""] * look, "failed", "failed"] for name, look in falls.items()}
    world.jobs.clear()
    trains = AnyOrder(world, lambda under_way: chance.randrange(len(under_way)))
    engine.submit, engine._done = trains.submit, Waits(trains)
    engine.train()
    stopped = stopped_by(engine)
    assert stopped == expected
    for trial in over:
        if trial.variant in stopped:
            assert trial.num_epochs == stopped[trial.variant], "nothing is trained that is then stopped"
    assert len({(trial.variant, trial.seed) for trial in over}) == len(over)


@pytest.mark.parametrize("falls", [{}, {NAMES[0]: 1}], ids=["all end", "one fails after it went on"])
def test_a_variant_that_is_certain_to_go_on_does_not_wait_for_the_last_trial(
    tmp_path: Path, falls: dict[str, int]
) -> None:
    world = world_of(tmp_path)
    engine, _, _ = engine_of(world, ten_levels())
    expected = stopped_at_barriers(engine, world, falls)
    world.faults = {(name, 1): [*[""] * look, "failed", "failed"] for name, look in falls.items()}
    world.jobs.clear()
    last = (NAMES[4], 3)

    def all_but_the_last(under_way: list[list[TrialJob]]) -> int:
        places = [place for place, jobs in enumerate(under_way) if all((job.variant, job.seed) != last for job in jobs)]
        if not places:
            early.append({job.variant for job in world.jobs if job.looks == (3, 4)})
        return places[0] if places else 0

    early: list[set[str]] = []
    trains = AnyOrder(world, all_but_the_last)
    engine.submit, engine._done = trains.submit, Waits(trains)
    engine.train()
    assert early[0] == set(NAMES[:4]), "five of ten go on, and one may still get ahead"
    assert stopped_by(engine) == expected


def test_what_is_known_is_not_trained_again(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    first, _, over = engine_of(world, ten_levels())
    first.train()
    second, _, told = engine_of(world, ten_levels())
    trained = len(world.jobs)
    second.know({trial.key: trial for trial in over})
    second.train()
    assert len(world.jobs) == trained
    assert second.trained == set()
    assert second.fates == first.fates
    assert {(t.variant, t.seed) for t in told} == {(t.variant, t.seed) for t in over}


@pytest.mark.parametrize("kept", [5, 17, 30])
def test_an_engine_that_was_cut_off_ends_as_one_that_was_not(tmp_path: Path, kept: int) -> None:
    world = world_of(tmp_path)
    whole, whole_analysis, over = engine_of(world, ten_levels())
    whole.train()
    again, again_analysis, _ = engine_of(world, ten_levels())
    again.know({trial.key: trial for trial in over[:kept]})
    again.train()
    assert again.fates == whole.fates
    assert again_analysis.verdicts(again.fates) == whole_analysis.verdicts(whole.fates)


def test_a_trial_that_fails_is_tried_again(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    world.faults = {(NAMES[2], 1): ["failed"], (NAMES[3], 0): [RuntimeError("killed")]}
    engine, _, over = engine_of(world, ten_levels(prune=False))
    engine.train()
    assert engine.fates == {}
    assert Counter(t.state for t in over) == {"finished": 44}


def test_a_trial_that_fails_twice_makes_its_level_incomplete_and_no_other(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    world.faults = {(NAMES[0], 1): ["failed", "failed"]}
    engine, analysis, over = engine_of(world, ten_levels(prune=False))
    engine.train()
    assert list(engine.fates) == [NAMES[0]]
    assert Counter(t.state for t in over) == {"finished": 43, "failed": 1}
    verdicts = {verdict.name: verdict for verdict in analysis.verdicts(engine.fates)}
    assert verdicts[NAMES[0]].verdict == "incomplete"
    assert "Seed 1 failed 2 times: ValueError: no" in verdicts[NAMES[0]].reason
    assert verdicts[NAMES[-1]].verdict == "hurts"


def test_a_trial_that_diverged_counts(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    world.faults = {(NAMES[0], 1): ["diverged"]}
    engine, analysis, over = engine_of(world, ten_levels(prune=False))
    engine.train()
    assert engine.fates == {}
    summary = analysis.summary(engine.setup.design.variants[1], "finished", [t for t in over if t.variant == NAMES[0]])
    assert (summary.num_seeds, summary.num_diverged) == (4, 1)


def test_the_baseline_goes_first_and_is_told_when_it_is_done(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    engine, analysis, _ = engine_of(world, ten_levels())
    jobs_before: list[int] = []
    engine.train(lambda: jobs_before.append(len(world.jobs)))
    assert [job.variant for job in world.jobs[:4]] == [BASELINE] * 4
    assert world.jobs[0].looks == (3, 4, 5, 7, 9)
    assert len(jobs_before) == 1
    assert jobs_before[0] < len(world.jobs)
    assert analysis.noise() is not None


def test_short_trials_are_handed_over_together(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    engine, _, _ = engine_of(world, ten_levels(baseline={"train.num_epochs": 1}, num_seeds=20))
    sizes: list[int] = []
    engine.submit = lambda jobs: (sizes.append(len(jobs)), world.submit(jobs))[1]  # type: ignore[assignment]
    engine.train()
    assert sum(sizes) == 11 * 20
    assert max(sizes) == 4  # half a second each, two seconds together


def num_epochs_of(levels: tuple[int, ...]) -> RunParams:
    """Params with levels of the number of epochs beside a baseline of 9, and two looks."""
    ablation = {"factors": {"train.num_epochs": levels}, "baseline": {"train.num_epochs": 9}}
    return RunParams.model_validate({"ablation": ablation | {"looks": (0.2, 0.3), "reduction": 2}})


def test_two_looks_after_one_epoch_are_one(tmp_path: Path) -> None:
    params = num_epochs_of((2, 3, 27, 36))
    design = make_design(params)
    names = [variant.name for variant in design.variants]
    world = World(tmp_path, {name: 0.9 - 0.01 * place for place, name in enumerate(names)})
    engine, _, _ = engine_of(world, params)
    assert engine.setup.looks[names[1]] == (1, 1, 2)
    engine.train()
    assert all(list(job.looks) == sorted(set(job.looks)) for job in world.jobs)
    for (name, _), trial in engine.trials.items():
        looks = engine.setup.looks[name]
        assert trial.num_epochs in (looks[:-1] if name in engine.fates else looks[-1:])


def test_a_variant_with_other_epochs_is_looked_at_after_the_same_share(tmp_path: Path) -> None:
    params = num_epochs_of((18, 27, 36, 45))
    design = make_design(params)
    world = World(tmp_path, {variant.name: 0.8 for variant in design.variants})
    engine, _, _ = engine_of(world, params)
    assert engine.setup.looks[design.variants[0].name] == (2, 3, 9)
    assert engine.setup.looks[design.variants[1].name] == (4, 6, 18)
    engine.train()
    looks = {variant.name: engine.setup.looks[variant.name] for variant in design.variants}
    for (name, _), trial in engine.trials.items():
        assert trial.num_epochs in (looks[name][:-1] if name in engine.fates else looks[name][-1:])
