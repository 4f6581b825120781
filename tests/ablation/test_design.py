import json
from typing import Any

import pytest
from pydantic import ValidationError

from assay.ablation.analysis import passed_over, winners
from assay.ablation.design import make_design, set_apart
from assay.ablation.values import shown
from assay.ablation.wording import not_taken_over
from assay.errors import ParamsError
from assay.params import Params, RunParams, flatten
from assay.records import BASELINE, Verdict


def params_with(**ablation: Any) -> RunParams:
    return RunParams.model_validate({"ablation": ablation})


ENCODER = {"kind": "huggingface", "path": "encoder"}
TWO = {"train.dropout_prob": (0.0, 0.5), "train.l2": (1e-4,)}


def test_one_at_a_time_changes_one_factor_and_keeps_the_rest() -> None:
    params = params_with(factors=TWO, num_seeds=2)
    design = make_design(params)
    assert [variant.name for variant in design.variants] == [
        BASELINE,
        "dropout_prob=0.0",
        "dropout_prob=0.5",
        "l2=0.0001",
    ]
    assert design.seeds == (0, 1)
    for variant in design.variants:
        trial = design.params_of(variant, 7)
        assert trial.train.seed == 7
        changed = {name for name in ("dropout_prob", "l2") if getattr(trial.train, name) != getattr(params.train, name)}
        assert changed == {path.rpartition(".")[2] for path in variant.changes}
        assert trial.model == params.model
    assert [contrast.weights for contrast in design.contrasts] == [
        {variant.name: 1.0, BASELINE: -1.0} for variant in design.variants[1:]
    ]


def test_trials_do_not_depend_on_what_else_is_compared() -> None:
    one, two = (make_design(params_with(factors=factors)) for factors in ({"train.l2": (1e-4,)}, TWO))
    assert one.params_of(one.variants[1], 3) == two.params_of(two.variants[3], 3)


def test_what_sets_trials_apart_from_the_project_is_named() -> None:
    project = RunParams()
    early = project.train.early_stopping
    assert early is not None
    baseline = {"train.num_epochs": 3, "train.early_stopping": None, "train.dropout_prob": 0.4}
    params = params_with(factors={**TWO, "train.optimizer.kind": ("sgd",)}, baseline=baseline)
    found = set_apart(params, project)
    assert list(found) == ["train.num_epochs", "train.early_stopping"], "what is compared is written down, too"
    assert found["train.num_epochs"] == ("3", str(project.train.num_epochs))
    assert found["train.early_stopping"][0] == "null"
    assert f"patience_epochs={early.patience_epochs}" in found["train.early_stopping"][1]
    assert set_apart(params_with(factors=TWO), project) == {}

    other = params.model_copy(update={"train": params.train.model_copy(update={"seed": 9, "label_smoothing": 0.2})})
    assert list(set_apart(other, project)) == ["train.num_epochs", "train.label_smoothing", "train.early_stopping"]


def test_leave_one_out_puts_all_on_and_takes_one_away() -> None:
    factors = {"train.dropout_prob": (0.5,), "train.label_smoothing": (0.1,)}
    design = make_design(params_with(factors=factors, mode="leave-one-out"))
    assert design.baseline.train.dropout_prob == 0.5
    assert design.baseline.train.label_smoothing == 0.1
    names = [variant.name for variant in design.variants]
    assert names == [BASELINE, "without dropout_prob", "without label_smoothing"]
    away = design.params_of(design.variants[1], 0).train
    assert (away.dropout_prob, away.label_smoothing) == (Params().train.dropout_prob, 0.1)


def test_factorial_crosses_all_levels() -> None:
    design = make_design(params_with(factors=TWO, mode="factorial"))
    assert len(design.variants) == 3 * 2
    assert design.variants[0].is_baseline
    assert len({variant.name for variant in design.variants}) == 6
    assert not design.prunes
    kinds = [contrast.kind for contrast in design.contrasts]
    assert kinds == ["main effect"] * 3 + ["interaction"] * 2


@pytest.mark.parametrize("effect", [0.3, -1.0])
def test_contrasts_of_a_factorial_find_planted_effects(effect: float) -> None:
    """A table of cell means with known main effects and one interaction gives just these."""
    design = make_design(params_with(factors=TWO, mode="factorial"))

    def mean(changes: dict[str, str]) -> float:
        dropout = {"0.0": effect, "0.5": 2 * effect}.get(changes.get("train.dropout_prob", ""), 0.0)
        l2 = 0.25 if "train.l2" in changes else 0.0
        both = 0.12 if changes.get("train.dropout_prob") == "0.5" and l2 else 0.0
        return 0.7 + dropout + l2 + both

    means = {variant.name: mean(variant.changes) for variant in design.variants}
    found = {
        contrast.name: sum(weight * means[name] for name, weight in contrast.weights.items())
        for contrast in design.contrasts
    }
    assert found == pytest.approx(
        {
            "dropout_prob=0.0": effect,
            "dropout_prob=0.5": 2 * effect + 0.12 / 2,
            "l2=0.0001": 0.25 + 0.12 / 3,
            "dropout_prob=0.0 x l2=0.0001": 0.0,
            "dropout_prob=0.5 x l2=0.0001": 0.12,
        }
    )
    for contrast in design.contrasts:
        assert sum(contrast.weights.values()) == pytest.approx(0)


def test_a_factorial_that_prunes_compares_cells() -> None:
    design = make_design(params_with(factors=TWO, mode="factorial", prune=True))
    assert {contrast.kind for contrast in design.contrasts} == {"level"}
    assert any("--no-prune" in note for note in design.notes)


def test_levels_that_equal_the_baseline_are_left_out_and_said() -> None:
    design = make_design(params_with(factors={"train.dropout_prob": (0.25, 0.5, 0.5)}))
    assert [variant.name for variant in design.variants] == [BASELINE, "dropout_prob=0.5"]
    assert len([note for note in design.notes if "left out" in note]) == 2


def test_a_whole_section_can_be_a_level() -> None:
    sgd = {"kind": "sgd", "learning_rate": 0.1}
    design = make_design(params_with(factors={"train.optimizer": (sgd,), "train.early_stopping": (None,)}))
    trial = design.params_of(design.variants[1], 0)
    assert trial.train.optimizer.kind == "sgd"
    assert design.params_of(design.variants[2], 0).train.early_stopping is None
    assert design.variants[2].name == "early_stopping=null"
    assert any("Early stopping" in note for note in design.notes)
    assert json.loads(design.variants[1].changes["train.optimizer"])["learning_rate"] == 0.1


def test_the_baseline_can_differ_from_the_project() -> None:
    design = make_design(params_with(factors={"train.l1": (1e-5,)}, baseline={"train.num_epochs": 2}))
    assert [design.params_of(variant, 0).train.num_epochs for variant in design.variants] == [2, 2]


@pytest.mark.parametrize("preset", ["dropout", "regularization"])
def test_presets_make_valid_designs(preset: str) -> None:
    design = make_design(params_with(preset=preset))
    assert len(design.variants) >= 5
    assert not any("left out" in note for note in design.notes)
    for variant in design.variants[1:]:
        assert design.params_of(variant, 0) != design.params_of(design.variants[0], 0)


MODELS: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "lstm"},
    "transformer": {"kind": "transformer", "dim": 60, "num_heads": 3, "num_layers": 1},
    "mlp": {"kind": "mlp", "hidden_units": [3, 64]},
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_preset_fits_every_family(kind: str) -> None:
    ablation = {"preset": "regularization"}
    design = make_design(RunParams.model_validate({"model": MODELS[kind], "ablation": ablation}))
    paths = {path for variant in design.variants for path in variant.changes}
    assert {"train.dropout_prob", "train.l2"} <= paths
    assert any(path.startswith("model.") for path in paths)
    for variant in design.variants[1:]:
        assert design.params_of(variant, 0) != design.params_of(design.variants[0], 0)
        if "train.augmentation" in variant.changes:
            assert json.loads(variant.changes["train.augmentation"]) == {"kind": "none"}, "no shifts of texts"


def test_the_preset_leaves_the_architecture_of_files_alone() -> None:
    params = {"model": {"kind": "transformer"}, "train": {"start": ENCODER}, "ablation": {"preset": "regularization"}}
    design = make_design(RunParams.model_validate(params))
    assert not [path for variant in design.variants for path in variant.changes if path.startswith("model.")]


def test_a_preset_takes_the_place_of_the_factors() -> None:
    design = make_design(params_with(preset="dropout", factors={"train.l2": (0.9,)}))
    assert [factor.path for factor in design.factors] == ["train.dropout_prob"]


SLOW_AND_LONG = {"train.num_epochs": 40, "train.optimizer.kind": "sgd", "train.optimizer.learning_rate": 0.3}


def test_a_recipe_changes_several_params_together() -> None:
    design = make_design(params_with(factors={"train.l2": (1e-4,)}, recipes={"long sgd": SLOW_AND_LONG}))
    assert [(contrast.name, contrast.kind) for contrast in design.contrasts] == [
        ("l2=0.0001", "level"),
        ("long sgd", "recipe"),
    ]
    (recipe,) = design.recipes
    assert set(recipe.changes) == {"train.num_epochs", "train.optimizer"}, "of a kind all that belongs to it"
    train = design.params_of(recipe, 5).train
    assert (train.num_epochs, train.optimizer.kind, train.optimizer.learning_rate) == (40, "sgd", 0.3)
    assert train.seed == 5
    assert design.baseline_levels.keys() == {"train.l2", *recipe.changes}
    for path, text in design.baseline_levels.items():
        here: Any = design.baseline.model_dump(mode="json")
        for name in path.split("."):
            here = here[name]
        assert json.loads(text) == here


def test_the_recipe_that_helps_most_is_taken_over_whole() -> None:
    design = make_design(params_with(factors={"train.l2": (1e-4,)}, recipes={"long sgd": SLOW_AND_LONG}))
    verdicts = [
        Verdict(contrast.name, contrast.kind, contrast.factors, "helps", "", num_seeds=3, difference=difference)
        for contrast, difference in zip(design.contrasts, (0.01, 0.02), strict=True)
    ]
    won = winners(design, verdicts)
    assert won == design.recipes[0].changes | {"train.l2": "0.0001"}
    assert passed_over(design, verdicts, won) == []
    changed = {path: json.loads(text) for path, text in design.recipes[0].changes.items()}
    assert changed["train.optimizer"]["learning_rate"] == 0.3


@pytest.mark.parametrize(
    "changes",
    [
        SLOW_AND_LONG,
        {"train.optimizer": {"kind": "sgd"}, "train.optimizer.learning_rate": 0.3},
        {"train.augmentation.horizontal_flip": False, "train.augmentation.kind": "crop-flip"},
    ],
)
def test_what_a_recipe_trains_does_not_depend_on_the_order_of_its_changes(changes: dict[str, Any]) -> None:
    base = {"train.augmentation": {"kind": "none"}}
    one, other = (
        make_design(params_with(recipes={"r": dict(some)}, baseline=base))
        for some in (changes.items(), reversed(changes.items()))
    )
    trained = one.params_of(one.variants[1], 0)
    assert trained == other.params_of(other.variants[1], 0)
    values = flatten(trained)
    assert {path: values[path] for path, value in changes.items() if not isinstance(value, dict)} == {
        path: value for path, value in changes.items() if not isinstance(value, dict)
    }


@pytest.mark.parametrize(
    ("best", "other"),
    [
        ("long sgd", "learning_rate=0.01"),
        ("learning_rate=0.01", "long sgd"),
        ("long sgd", "weight_decay=0.1"),
    ],
)
def test_of_two_that_change_the_same_one_wins(best: str, other: str) -> None:
    factors = {"train.optimizer.learning_rate": (0.01,), "train.optimizer.weight_decay": (0.1,)}
    design = make_design(params_with(factors=factors, recipes={"long sgd": SLOW_AND_LONG}))
    verdicts = [
        Verdict(c.name, c.kind, c.factors, "helps", "", num_seeds=3, difference={best: 0.02, other: 0.01}[c.name])
        for c in design.contrasts
        if c.name in (best, other)
    ]
    won = next(variant for variant in design.variants if variant.name == best)
    assert winners(design, verdicts) == won.changes
    assert passed_over(design, verdicts, won.changes) == [other]


def test_levels_that_help_less_than_another_of_their_factor_are_passed_over() -> None:
    design = make_design(params_with(factors={"train.dropout_prob": (0.1, 0.3, 0.5), "train.l2": (1e-4,)}))
    gains = {"dropout_prob=0.1": 0.01, "dropout_prob=0.3": 0.03, "dropout_prob=0.5": 0.02}
    verdicts = [
        Verdict(
            name, "level", c.factors, "helps" if name in gains else "hurts", "", 3, difference=gains.get(name, -0.1)
        )
        for name, c in ((contrast.name, contrast) for contrast in design.contrasts)
    ]
    won = winners(design, verdicts)
    assert won == {"train.dropout_prob": "0.3"}
    assert passed_over(design, verdicts, won) == ["dropout_prob=0.5", "dropout_prob=0.1"]


def test_what_helps_and_is_not_taken_over_is_named_in_a_note() -> None:
    assert not_taken_over([]) == []
    (one,) = not_taken_over(["l2=0.1"])
    assert one.startswith("l2=0.1 helps, too, and is not among the winners")
    (many,) = not_taken_over(["a", "b", "c", "d"])
    assert many.startswith("a, b and 2 more help, too, and are not among the winners")


def test_a_recipe_can_go_into_a_section_that_is_null() -> None:
    changes = {"train.early_stopping.patience_epochs": 6, "train.num_epochs": 40}
    for ablation in ({"recipes": {"r": changes}}, {"factors": {path: (value,) for path, value in changes.items()}}):
        design = make_design(params_with(**ablation, baseline={"train.early_stopping": None}))
        assert design.baseline_levels["train.early_stopping"] == "null"
        stopping = [design.params_of(variant, 0).train.early_stopping for variant in design.variants]
        assert [s.patience_epochs for s in stopping if s is not None] == [6]
        assert any("Early stopping" in note for note in design.notes)


def test_levels_are_what_a_variant_has_and_null_where_there_is_nothing() -> None:
    factors = {"train.optimizer.weight_decay": (0.1,)}
    design = make_design(params_with(factors=factors, recipes={"r": SLOW_AND_LONG}))
    levels = design.levels_of(design.recipes[0])
    assert levels["train.optimizer.weight_decay"] == "null", "SGD has none"
    assert json.loads(levels["train.optimizer"])["learning_rate"] == 0.3
    assert json.loads(design.levels_of(design.variants[1])["train.optimizer"])["weight_decay"] == 0.1


@pytest.mark.parametrize("name", ["l2=1", "a+b", "v1.5", "", "-a", "x" * 41])
def test_a_name_that_is_none_is_refused_when_params_are_read(name: str) -> None:
    with pytest.raises(ValidationError, match="is no name for a recipe"):
        params_with(recipes={name: {"train.l2": 1e-4}})


def test_a_recipe_that_is_the_baseline_is_left_out_and_said() -> None:
    own = {"train.l2": Params().train.l2, "train.l1": Params().train.l1}
    design = make_design(params_with(factors=TWO, recipes={"as it is": own}))
    assert design.recipes == ()
    assert any("Recipe as it is is the baseline" in note for note in design.notes)


@pytest.mark.parametrize(
    ("ablation", "words"),
    [
        ({}, "nothing to compare"),
        ({"factors": {"train.l2": ()}}, "needs a level"),
        ({"factors": {"train.l2": (0.0,)}}, "every level equals the baseline"),
        ({"factors": {"train.dropout": (0.1,)}}, "Did you mean train.dropout_prob?"),
        ({"factors": {"train.dropout_prob": (1.4,)}}, "must be in [0, 0.999]"),
        ({"factors": {"train.dropout_prob": ("high",)}}, "must be a number"),
        ({"factors": {"train.num_epochs": (2.5,)}}, "must be a whole number"),
        ({"factors": {"train.optimizer.kind": ("adamax",)}}, "must be one of"),
        ({"factors": {"train.optimizer.momentum": (0.5,)}}, "belongs to kind sgd"),
        ({"factors": {"train.seed": (1, 2)}}, "ablation.num_seeds"),
        ({"factors": {"device.num_threads": (2,)}}, "cannot differ"),
        ({"factors": {"split.seed": (1,)}}, "no params path that trials can differ in"),
        ({"factors": {"evaluation.num_bootstrap": (100,)}}, "no params path"),
        ({"factors": {"train": (1,)}}, "no params path"),
        ({"factors": {"train.l2": (1e-4, 1e-3)}, "mode": "leave-one-out"}, "takes one level"),
        ({"factors": {"train.l2": (1e-4,)}, "baseline": {"train.nope": 1}}, "train.nope in ablation.baseline"),
        (
            {"factors": {"model.hidden_units": (32,)}, "baseline": {"train.start": ENCODER}},
            "changes nothing in variant",
        ),
        ({"recipes": {"r": {"train.start": ENCODER, "model.hidden_units": 32}}}, "changes nothing in variant r"),
        ({"recipes": {"r": {}}}, "needs something that it changes"),
        ({"recipes": {"r": {"train.dropout": 0.1}}}, "Did you mean train.dropout_prob?"),
        ({"recipes": {"r": {"train.seed": 1}}}, "ablation.num_seeds"),
        ({"recipes": {"baseline": {"train.l2": 1e-4}}}, "another name"),
        (
            {"recipes": {"r": {"model.kind": "lstm"}}, "baseline": {"train.start": ENCODER}},
            "changes nothing in variant",
        ),
        ({"recipes": {"r": {"train.l2": 1e-4}}, "factors": {"train.l2": (1e-4,)}}, "is what l2=0.0001 is"),
        ({"recipes": {"a": {"train.l2": 1e-4}, "b": {"train.l2": 1e-4}}}, "is what a is"),
        ({"recipes": {"r": {"train.l2": 1e-4}}, "mode": "factorial", "factors": TWO}, "one by one"),
    ],
)
def test_bad_requests_are_one_clear_paragraph(ablation: dict[str, Any], words: str) -> None:
    with pytest.raises(ParamsError) as refused:
        make_design(params_with(**ablation))
    assert words in str(refused.value)


def test_one_seed_is_allowed_and_said() -> None:
    design = make_design(params_with(factors=TWO, num_seeds=1))
    assert any("One seed" in note for note in design.notes)


def test_levels_read_as_people_write_them() -> None:
    assert shown({"kind": "sgd", "learning_rate": 0.1}) == "sgd(learning_rate=0.1)"
    assert shown({"kind": "none"}) == "none"
    assert shown([16, 32]) == "[16, 32]"
    assert shown(None) == "null"
