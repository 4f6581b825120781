"""The whole of an ablation, from params to verdicts; whoever calls it brings what runs the trials.

The steps: lay out the design, find what is done already, say what it will cost and what it can see, train what is
missing, judge, draw, keep. Test data is never read.
"""

import contextvars
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

from assay.ablation.analysis import INCOMPLETE, STOPPED, Analysis, passed_over, winners
from assay.ablation.design import Design, make_design, with_seeds
from assay.ablation.engine import Engine, Setup, Submit, seconds_per_epoch
from assay.ablation.power import detectable, seeds_to_detect
from assay.ablation.report import write_report
from assay.ablation.request import Request, num_workers
from assay.ablation.values import validated
from assay.ablation.wording import not_taken_over
from assay.data.loading import Dataset, load_dataset
from assay.data.splits import make_splits, resample_val
from assay.data.validation import validate
from assay.errors import ParamsError
from assay.params import RunParams
from assay.params_yaml import assign
from assay.progress import announce
from assay.project import only_one
from assay.records import (
    AblationPlan,
    AblationRecord,
    Splits,
    Trial,
    VariantSummary,
    Verdict,
)
from assay.tracking.ablations import OpenAblation

MOST_SEEDS = 100
"""Seeds that a wish to detect a difference may come to."""

OnPlan = Callable[[AblationPlan], None]


class Ablation:
    """One ablation under way.

    Args:
        wanted: What is wanted.
        dataset: The decoded examples.
        splits: Their division.
        workers: Trials at a time.
    """

    def __init__(self, wanted: Request, dataset: Dataset, splits: Splits, workers: int) -> None:
        self.wanted = wanted
        self._dataset = dataset
        self._splits = splits
        self._workers = workers
        self._pilot: set[tuple[str, int]] = set()
        self._started = time.perf_counter()
        self.design = wanted.design
        self._lay_out(self.design)

    def _lay_out(self, design: Design) -> None:
        """Settle on a design and find which of its trials are done."""
        wanted = self.wanted
        self.design = design
        keys = wanted.trial_keys(design)
        self._setup = Setup(
            design=design,
            params=wanted.params.ablation,
            data=wanted.data,
            splits={seed: self._splits_of(seed) for seed in design.seeds},
            keys=keys,
            trials_dir=wanted.project.home / "trials",
            cache_dir=wanted.project.cache_dir,
            num_threads=wanted.compute.num_threads,
            starts=wanted.starts(design),
        )
        self._known = wanted.runs.find_trials(keys.values())
        self._analysis = Analysis(design, wanted.params.ablation, self._splits.num_train)
        for (name, seed), key in keys.items():
            if key in self._known:
                trial = replace(self._known[key], variant=name, seed=seed)
                self._analysis.add(trial, len(wanted.data.class_names))

    def _splits_of(self, seed: int) -> Splits:
        if not self.wanted.params.ablation.resample_splits:
            return self._splits
        return resample_val(self._dataset, self._splits, self.wanted.params.split, seed, self.wanted.folder / "splits")

    def plan(self) -> AblationPlan:
        """Return what is left to do and what it can see, as far as that is known by now."""
        design, ablation = self.design, self.wanted.params.ablation
        known = self._known.values()
        epochs = max(0, self._setup.num_epochs - sum(trial.num_epochs for trial in known))
        per_epoch = seconds_per_epoch(known)
        seconds = None if per_epoch is None else per_epoch * epochs / self._workers
        done = [trial for trial in known if trial.state in ("finished", "diverged")]
        return AblationPlan(
            mode=ablation.mode,
            metric=ablation.metric,
            variants=design.variants,
            seeds=design.seeds,
            num_trials=len(self._setup.keys),
            num_done=len(done),
            num_epochs=epochs,
            seconds=0.0 if not epochs else seconds,
            detectable=self._detectable(),
            power=ablation.power,
            margin=ablation.margin,
            prunes=design.prunes,
            baseline=design.baseline_levels,
            alpha=ablation.alpha,
            resamples_splits=ablation.resample_splits,
            notes=design.notes,
            recipes=tuple(recipe.name for recipe in design.recipes),
        )

    def _detectable(self) -> float | None:
        """The smallest difference that these seeds find; None while the baseline's noise is unknown."""
        noise, ablation = self._analysis.noise(), self.wanted.params.ablation
        if noise is None:
            return None
        return detectable(noise, len(self.design.seeds), len(self.design.contrasts), ablation.alpha, ablation.power)

    def _engine(self, submit: Submit, on_trial: Callable[[Trial], Trial]) -> Engine:
        return Engine(self._setup, self._analysis, submit, self._workers, on_trial)

    def choose_seeds(self, submit: Submit) -> None:
        """Train the baseline, and take as many seeds as it takes to find the difference that was asked for.

        Raises:
            ParamsError: No number of seeds that anybody would want finds it.
        """
        ablation = self.wanted.params.ablation
        if ablation.detect is None:
            return
        pilot = max(3, ablation.num_seeds)
        self._lay_out(make_design(with_seeds(self.wanted.params, pilot)))
        engine = self._engine(submit, lambda trial: trial)
        engine.know(self._known)
        engine.train_baseline()
        noise = self._analysis.noise()
        if noise is None:
            raise ParamsError(
                "ablation.detect: the baseline's trials failed, so its noise is unknown. Mend them first."
            )
        num_contrasts = len(self.design.contrasts)
        seeds = seeds_to_detect(noise, ablation.detect, num_contrasts, ablation.alpha, ablation.power, most=MOST_SEEDS)
        if seeds is None:
            smallest = detectable(noise, MOST_SEEDS, num_contrasts, ablation.alpha, ablation.power)
            raise ParamsError(
                f"ablation.detect={ablation.detect}: even {MOST_SEEDS} seeds would find no difference below "
                f"{smallest:.4f} on {self._splits.num_val} val examples. Ask for a larger one, or enlarge val."
            )
        self._lay_out(make_design(with_seeds(self.wanted.params, max(2, seeds))))
        for trial in engine.trials.values():
            if trial.key in self._setup.keys.values():
                self._known[trial.key] = trial
        self._pilot = {unit for unit in engine.trained if unit in self._setup.keys}

    def run(self, submit: Submit, on_plan: OnPlan, *, name: str, page: str | None = None) -> AblationRecord:
        """Train what is missing, judge, and keep all of it. The MLflow run is opened while trials are trained.

        Args:
            submit: Starts some trials.
            on_plan: Called with the plan once the baseline's noise is known, if it was not before.
            name: Display name of the MLflow run.
            page: Address of the flow run's page.
        """
        wanted = self.wanted
        with only_one(wanted.folder / "lock", on_wait=_announce_wait):
            planned = self.plan()
            opening = _meanwhile(
                lambda: wanted.runs.open(
                    wanted.key, wanted.params, wanted.data, self._splits, planned, name=name, page=page
                )
            )
            with self._failure_noted(opening):
                engine = self._engine(submit, lambda trial: self._log(opening.result(), trial))
                engine.depend_on(opening)
                engine.know(self._known)
                engine.train(lambda: self._tell(engine, planned, on_plan))
                record = self._conclude(engine, opening.result(), planned)
            self._clear()
        return record

    @contextmanager
    def _failure_noted(self, opening: Future[OpenAblation]) -> Iterator[None]:
        """Mark the run FAILED when the block raises, if it could be opened."""
        try:
            yield
        except BaseException:
            if opening.exception() is None:
                with self.wanted.runs.tracker.failure_noted(opening.result().run_id):
                    raise
            raise

    def _tell(self, engine: Engine, planned: AblationPlan, on_plan: OnPlan) -> None:
        """Say again what is planned, once the baseline has shown how long it takes and how noisy it is."""
        self._known |= {trial.key: trial for trial in engine.trials.values()}
        if planned.detectable is None and len(self.design.seeds) > 1:
            on_plan(self.plan())

    def _log(self, opened: OpenAblation, trial: Trial) -> Trial:
        _import_drawing_meanwhile()
        variant = next(variant for variant in self.design.variants if variant.name == trial.variant)
        return self.wanted.runs.log_trial(opened, trial, variant, self.design.levels_of(variant))

    def _conclude(self, engine: Engine, opened: OpenAblation, planned: AblationPlan) -> AblationRecord:
        """Judge and draw, and keep all of it in MLflow."""
        from assay.ablation.figures import draw_ablation

        wanted, runs = self.wanted, self.wanted.runs
        verdicts = self._analysis.verdicts(engine.fates)
        summaries = self._summaries(engine, opened)
        planned = replace(planned, detectable=self._detectable())
        won = winners(self.design, verdicts)
        record = AblationRecord(
            run_id=opened.run_id,
            experiment_id=opened.experiment_id,
            ablation_key=wanted.key.digest,
            reused=False,
            data_md5=wanted.data.md5,
            plan=planned,
            num_val=self._splits.num_val,
            confidence=self._analysis.rules.confidence,
            summaries=summaries,
            verdicts=self._with_divergences(verdicts, summaries),
            trials=tuple(engine.trials[unit] for unit in self._setup.keys if unit in engine.trials),
            winners=won,
            report_path=runs.report_path(opened),
            seconds=time.perf_counter() - self._started,
            num_trained=len(engine.trained | self._pilot),
            notes=(*self.design.notes, *not_taken_over(passed_over(self.design, verdicts, won))),
        )
        figures = draw_ablation(record, wanted.folder / "figures")
        report = write_report(record, figures, runs.tracker.lineage(opened.run_id), wanted.folder / "report.html")
        runs.finish(opened, record, figures, report)
        return record

    def _summaries(self, engine: Engine, opened: OpenAblation) -> tuple[VariantSummary, ...]:
        summaries = []
        for variant in self.design.variants:
            fate = engine.fates.get(variant.name, ("finished", ""))[0]
            units = [(variant.name, seed) for seed in self.design.seeds]
            trials = [engine.trials[unit] for unit in units if unit in engine.trials]
            summary = self._analysis.summary(variant, fate, trials)
            summaries.append(replace(summary, run_id=opened.variants.get(variant.name, "")))
        return tuple(summaries)

    def _with_divergences(
        self, verdicts: tuple[Verdict, ...], summaries: tuple[VariantSummary, ...]
    ) -> tuple[Verdict, ...]:
        """Say at each verdict how many of its trials diverged."""
        diverged = {summary.variant.name: summary.num_diverged for summary in summaries}
        return tuple(
            replace(verdict, num_diverged=sum(diverged[name] for name in contrast.weights))
            for verdict, contrast in zip(verdicts, self.design.contrasts, strict=True)
        )

    def _clear(self) -> None:
        """Remove the trials' checkpoints: what they came to is in MLflow."""
        for key in self._setup.keys.values():
            shutil.rmtree(self._setup.trials_dir / key[:16], ignore_errors=True)


def open_ablation(wanted: Request) -> Ablation:
    """Check the data, divide it as a whole run does, and find which trials are done."""
    dataset = load_dataset(wanted.data, wanted.project.cache_dir)
    validate(dataset)
    splits = make_splits(dataset, wanted.params.split, wanted.folder / "splits")
    return Ablation(wanted, dataset, splits, num_workers(wanted.params, wanted.compute.device))


def chosen(params: RunParams, record: AblationRecord) -> RunParams:
    """Return the params with the levels that won.

    Raises:
        ParamsError: They do not go together.
    """
    values = params.model_dump(mode="json")
    for path, text in record.winners.items():
        assign(values, path, json.loads(text))
    return validated(values, dict.fromkeys(record.winners, "among what helped in the ablation"))


def describe_plan(plan: AblationPlan) -> str:
    """Return one line: how many trials, how long, and what they can see."""
    words = (
        f"{len(plan.variants)} variants x {len(plan.seeds)} seeds: {plan.num_trials - plan.num_done} trials to train"
    )
    if plan.seconds is not None:
        words += f", about {max(1.0, plan.seconds):,.0f} s"
    if plan.detectable is not None:
        words += f"; a difference of {plan.detectable:.4f} is found with probability {plan.power:.0%}"
    return words


def describe(record: AblationRecord) -> str:
    """Return one line: how many levels got which verdict."""
    words = [verdict.verdict for verdict in record.verdicts]
    order = ("helps", "hurts", "no difference", "undetermined", STOPPED, INCOMPLETE)
    counts = ", ".join(f"{words.count(word)} {word}" for word in order if word in words)
    verb = "Reused" if record.reused else f"{record.num_trained} trials trained"
    return f"{verb}: {counts}."


def _announce_wait() -> None:
    announce("ablate", "the same ablation is under way in another process: waiting for it")


def _meanwhile(make: Callable[[], OpenAblation]) -> Future[OpenAblation]:
    """Open MLflow in a thread, which takes 2 to 3 s; that does not keep the process from ending."""
    future: Future[OpenAblation] = Future()

    def fill() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(fill,), daemon=True).start()
    return future


@cache
def _import_drawing_meanwhile() -> None:
    """Import what draws, which takes a second, while trials are trained; before that it would delay them."""
    threading.Thread(target=_import_drawing, daemon=True).start()


def _import_drawing() -> None:
    from assay.ablation import figures

    assert figures
