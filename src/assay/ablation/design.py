"""From factors and levels to variants, and to the contrasts that get verdicts."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pydantic import JsonValue

from assay.ablation.presets import preset_factors
from assay.ablation.values import (
    FIXED,
    Values,
    as_text,
    differences,
    overlap,
    short_names,
    shown,
    there,
    validated,
    value_at,
    with_changes,
)
from assay.errors import ParamsError
from assay.params import FILE_STARTS, AblationParams, RunParams
from assay.params_yaml import assign
from assay.records import BASELINE, Contrast, Variant


@dataclass(frozen=True)
class Factor:
    """One params path and the levels it is given.

    Attributes:
        path: Params path, e.g. ``train.dropout_prob``.
        baseline: The level of the variant that all others are compared with.
        levels: The other levels; validated JSON values.
    """

    path: str
    baseline: JsonValue
    levels: tuple[JsonValue, ...]


@dataclass(frozen=True)
class Design:
    """What is trained, and what is compared.

    Attributes:
        baseline: Params of the baseline.
        factors: The factors.
        recipes: The variants whose changes are only made together.
        variants: All variants, the baseline first.
        contrasts: What gets a verdict; one family.
        seeds: Values of ``train.seed``.
        prunes: Whether levels that fall behind stop early.
        notes: Sentences for people.
    """

    baseline: RunParams
    factors: tuple[Factor, ...]
    recipes: tuple[Variant, ...]
    variants: tuple[Variant, ...]
    contrasts: tuple[Contrast, ...]
    seeds: tuple[int, ...]
    prunes: bool
    notes: tuple[str, ...]

    @cached_property
    def baseline_levels(self) -> dict[str, str]:
        """What the baseline has at every path that a variant changes, as JSON text."""
        return self.levels_of(self.variants[0])

    def levels_of(self, variant: Variant) -> dict[str, str]:
        """Return what a variant has at every path that one of them changes, as JSON text; null where there is none."""
        values = self.params_of(variant, self.seeds[0]).model_dump(mode="json")
        return {path: as_text(value_at(values, path)) for other in self.variants for path in other.changes}

    def params_of(self, variant: Variant, seed: int) -> RunParams:
        """Return the params of one trial.

        Args:
            variant: One of the variants.
            seed: One of the seeds.
        """
        values = self.baseline.model_dump(mode="json")
        for path, text in variant.changes.items():
            assign(values, path, json.loads(text))
        values["train"]["seed"] = seed
        return RunParams.model_validate(values)


def make_design(params: RunParams) -> Design:
    """Lay out an ablation.

    The baseline is the project's params with ``ablation.baseline`` on top. *One at a time* changes one factor of it.
    *Leave one out* puts every factor on its level first, and each variant takes one back to the project's value.
    *Factorial* crosses all levels: a main effect compares a level with the factor's baseline level, averaged over the
    cells of the other factors, and an interaction is how much one factor's effect changes with another's level. A
    factorial that prunes compares each cell with the baseline instead, because effects need every cell. *Recipes* are
    variants beside the factors of one at a time, each with several changes that are only made together.

    Args:
        params: All params of the project, those of the ablation included.

    Raises:
        ParamsError: There is nothing to compare, a path is unknown or cannot be a factor, or a level is not valid.
    """
    ablation = params.ablation
    project = _project_values(params)
    base = with_changes(project, ablation.baseline, "ablation.baseline")
    levels = _levels(ablation, base)
    notes: list[str] = []
    if ablation.mode == "leave-one-out":
        factors, base = _left_out(levels, base, notes)
    else:
        says = ablation.preset is None  # a preset brings levels that may well be the project's own
        factors = tuple(_factor(path, given, base, notes if says else []) for path, given in levels.items())
        factors = tuple(factor for factor in factors if factor.levels)
    recipes = _recipes(ablation, base, notes)
    if not factors and not recipes:
        raise ParamsError(
            "ablation in params.yaml: there is nothing to compare; every level equals the baseline. Give a factor "
            "another level, e.g. ablation.factors={train.dropout_prob: [0.0, 0.5]}, or a recipe another change."
        )
    variants = _crossed(factors) if ablation.mode == "factorial" else _one_each(factors, ablation.mode)
    variants = (*variants, *recipes)
    prunes = ablation.mode != "factorial" if ablation.prune is None else ablation.prune
    cells = ablation.mode == "factorial" and not prunes
    contrasts = _effects(factors, variants) if cells else _against_baseline(variants, recipes)
    if ablation.mode == "factorial" and prunes:
        notes.append("Cells are compared with the baseline; main effects and interactions need every cell: --no-prune.")
    if ablation.num_seeds == 1:
        notes.append("One seed says nothing about chance: every verdict is undetermined. Give ablation.num_seeds=3.")
    if any(path.startswith("train.early_stopping") for variant in variants for path in variant.changes):
        notes.append("Early stopping picks its epoch on val, the same examples that compare: it looks a little better.")
    first = params.train.seed
    seeds = tuple((first + number) % 2**32 for number in range(ablation.num_seeds))
    design = Design(validated(base, {}), factors, recipes, variants, contrasts, seeds, prunes, tuple(notes))
    _require_effect(design)
    _require_difference(design)
    return design


def _require_difference(design: Design) -> None:
    """Refuse a recipe that is another variant under another name: it would be trained and judged twice.

    Raises:
        ParamsError: There is one.
    """
    seen: dict[str, Variant] = {}
    for variant in design.variants if design.recipes else ():
        same = seen.setdefault(design.params_of(variant, design.seeds[0]).model_dump_json(), variant)
        if same is not variant and variant in design.recipes:
            raise ParamsError(f"ablation.recipes.{variant.name}: is what {same.name} is. Leave one of them out.")


def _require_effect(design: Design) -> None:
    """Refuse changes of the model where its files bring the architecture: they would be found to make no difference.

    Raises:
        ParamsError: A variant that starts from files has another ``model`` in its changes.
    """
    for variant in design.variants:
        changed = [path for path in variant.changes if path.partition(".")[0] == "model"]
        if not changed:
            continue
        kind = design.params_of(variant, design.seeds[0]).train.start.kind
        if kind in FILE_STARTS:
            raise ParamsError(
                f"ablation in params.yaml: {changed[0]} changes nothing in variant {variant.name}, which starts from "
                f"the files of a model (train.start.kind={kind}) and has its architecture. Leave it out there."
            )


def with_seeds(params: RunParams, num_seeds: int) -> RunParams:
    """Return the params with another number of seeds."""
    return params.model_copy(update={"ablation": params.ablation.model_copy(update={"num_seeds": num_seeds})})


def set_apart(params: RunParams, project: RunParams) -> dict[str, tuple[str, str]]:
    """Return in what all trials of an ablation differ from a project's params, apart from what they compare.

    Args:
        params: Params of the ablation.
        project: Those that it is about to be taken over into.

    Returns:
        Params path -> the value in trials and the project's, as people read them.

    Raises:
        ParamsError: As `make_design`.
    """
    design = make_design(params)
    compared = tuple(path for variant in design.variants for path in variant.changes)
    trials, own = (
        {name: getattr(some, name).model_dump(mode="json") for name in ("model", "train")}
        for some in (design.baseline, project)
    )
    return {
        path: (shown(there), shown(here))
        for path, (there, here) in differences(trials, own).items()
        if path not in FIXED and not any(overlap(path, other) for other in compared)
    }


def _project_values(params: RunParams) -> Values:
    """The params without the ablation's own: those decide what is compared, not what a trial is."""
    values = params.model_dump(mode="json")
    values["ablation"] = AblationParams().model_dump(mode="json")
    return values


def _levels(ablation: AblationParams, base: Values) -> dict[str, tuple[JsonValue, ...]]:
    """The preset's factors, or those that are given."""
    if ablation.preset:
        return preset_factors(ablation.preset, base)
    given = dict(ablation.factors)
    if not given and not ablation.recipes:
        raise ParamsError(
            "ablation in params.yaml: there is nothing to compare. Give ablation.factors, e.g. "
            "{train.dropout_prob: [0.0, 0.5]}, or a preset: ablate=regularization or ablate=dropout."
        )
    for path, levels in given.items():
        if not levels:
            raise ParamsError(f"ablation.factors.{path}=[]: a factor needs a level besides the baseline's. Add one.")
    return given


def _factor(path: str, levels: Sequence[JsonValue], base: Values, notes: list[str]) -> Factor:
    """Validate a factor's levels and leave out those that change nothing."""
    changed = [with_changes(base, {path: level}, "ablation.factors") for level in levels]
    path = there(base, path)
    values = [value_at(those, path) for those in changed]
    baseline = value_at(validated(base, {}).model_dump(mode="json"), path)
    kept: list[JsonValue] = []
    for value in values:
        if value == baseline or value in kept:
            notes.append(f"{path}={as_text(value)} is the baseline's level or given twice: left out.")
            continue
        kept.append(value)
    return Factor(path, baseline, tuple(kept))


def _left_out(
    levels: Mapping[str, tuple[JsonValue, ...]], project: Values, notes: list[str]
) -> tuple[tuple[Factor, ...], Values]:
    """Put every factor on its level; what is left out goes back to the project's value."""
    for path, given in levels.items():
        if len(given) != 1:
            raise ParamsError(
                f"ablation.factors.{path}={as_text(list(given))}: leave-one-out puts a factor on or takes it away, so "
                "it takes one level, the one that is on. Give one, or use mode one-at-a-time."
            )
    on = with_changes(project, {path: given[0] for path, given in levels.items()}, "ablation.factors")
    factors = []
    for path in dict.fromkeys(there(project, path) for path in levels):
        if value_at(on, path) == value_at(project, path):
            notes.append(f"{path}={as_text(value_at(on, path))} is the project's own level: nothing to take away.")
        else:
            factors.append(Factor(path, value_at(on, path), (value_at(project, path),)))
    return tuple(factors), on


def _one_each(factors: Sequence[Factor], mode: str) -> tuple[Variant, ...]:
    names = short_names([factor.path for factor in factors])
    variants = [Variant(BASELINE)]
    for factor in factors:
        for level in factor.levels:
            name = f"{names[factor.path]}={shown(level)}"
            if mode == "leave-one-out":
                name = f"without {names[factor.path]}"
            variants.append(Variant(name, {factor.path: as_text(level)}))
    return tuple(variants)


def _crossed(factors: Sequence[Factor]) -> tuple[Variant, ...]:
    names = short_names([factor.path for factor in factors])
    variants = []
    for cell in itertools.product(*((factor.baseline, *factor.levels) for factor in factors)):
        changed = [(factor, level) for factor, level in zip(factors, cell, strict=True) if level != factor.baseline]
        name = ", ".join(f"{names[factor.path]}={shown(level)}" for factor, level in changed) or BASELINE
        variants.append(Variant(name, {factor.path: as_text(level) for factor, level in changed}))
    return tuple(variants)


def _recipes(ablation: AblationParams, base: Values, notes: list[str]) -> tuple[Variant, ...]:
    """Validate the recipes and leave out those that change nothing."""
    if ablation.recipes and ablation.mode != "one-at-a-time":
        raise ParamsError(
            "ablation.recipes: are compared with the baseline one by one, which ablation.mode="
            f"{ablation.mode} does not do. Use mode one-at-a-time, or leave them out: ablation.recipes={{}}."
        )
    kept = []
    for name, changes in ablation.recipes.items():
        where = f"ablation.recipes.{name}"
        if not changes:
            raise ParamsError(f"{where}={{}}: a recipe needs something that it changes. Add a params path and a value.")
        if name == BASELINE:
            raise ParamsError(f"{where}: is what all are compared with. Give the recipe another name.")
        values = with_changes(base, changes, where)
        levels = {path: value_at(values, path) for path in _widest(base, changes)}
        if all(level == value_at(base, path) for path, level in levels.items()):
            notes.append(f"Recipe {name} is the baseline: left out.")
        else:
            kept.append(Variant(name, {path: as_text(level) for path, level in levels.items()}))
    return tuple(kept)


def _widest(base: Values, paths: Iterable[str]) -> tuple[str, ...]:
    """What has to be set to change all of these, in any order: of a ``kind`` all that belongs to it."""
    whole = {there(base, path.removesuffix(".kind")) for path in paths}
    return tuple(sorted(path for path in whole if not any(path.startswith(f"{other}.") for other in whole)))


def _against_baseline(variants: Sequence[Variant], recipes: Sequence[Variant]) -> tuple[Contrast, ...]:
    return tuple(
        Contrast(
            variant.name,
            "recipe" if variant in recipes else "level",
            tuple(variant.changes),
            {variant.name: 1.0, BASELINE: -1.0},
        )
        for variant in variants
        if not variant.is_baseline
    )


def _effects(factors: Sequence[Factor], variants: Sequence[Variant]) -> tuple[Contrast, ...]:
    """Main effects of every level, and interactions of every two levels of two factors."""
    names = short_names([factor.path for factor in factors])
    contrasts = []
    for factor in factors:
        for level in factor.levels:
            weights = _weights(variants, [(factor, level)])
            contrasts.append(Contrast(f"{names[factor.path]}={shown(level)}", "main effect", (factor.path,), weights))
    for one, other in itertools.combinations(factors, 2):
        for level, other_level in itertools.product(one.levels, other.levels):
            name = f"{names[one.path]}={shown(level)} x {names[other.path]}={shown(other_level)}"
            weights = _weights(variants, [(one, level), (other, other_level)])
            contrasts.append(Contrast(name, "interaction", (one.path, other.path), weights))
    return tuple(contrasts)


def _weights(variants: Sequence[Variant], levels: Sequence[tuple[Factor, JsonValue]]) -> dict[str, float]:
    """Weights of the cells in a difference (of differences) between levels and the baseline's levels."""
    weights: dict[str, float] = {}
    for variant in variants:
        sign = 1
        for factor, level in levels:
            here = json.loads(variant.changes[factor.path]) if factor.path in variant.changes else factor.baseline
            sign *= 1 if here == level else -1 if here == factor.baseline else 0
        if sign:
            weights[variant.name] = float(sign)
    share = 2 ** len(levels) / len(weights)
    return {name: sign * share for name, sign in weights.items()}
