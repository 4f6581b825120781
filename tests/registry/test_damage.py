"""Versions that are damaged, at the gate: the challenger is refused by name, the champion gets a clear paragraph."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assay.errors import AssayError, ModelFileError
from assay.records import FIRST, KEPT, REFUSED, Decision, Interval, ModelRef
from assay.registry.contest import TestBench
from assay.registry.promotions import Promotions
from tests.registry.asked import Versions, aliases, ask, bench, champion, failed, promotions, versions
from tests.registry.gated import (
    MODEL,
    add_version,
    change_weights,
    copy_version,
    model_folder,
)

__all__ = ["ask", "bench", "champion", "promotions", "versions"]


@pytest.mark.usefixtures("champion")
@pytest.mark.parametrize(
    ("how", "name", "words"),
    [
        ("nan", "integrity: finite", "its weights hold NaN"),
        ("overflow", "integrity: files", "logits are"),
        ("swapped", "integrity: files", "weights.safetensors: is changed"),
        ("truncated", "integrity: files", "weights.safetensors: is truncated"),
        ("removed", "integrity: files", "weights.safetensors: is missing"),
        ("gone", "integrity: files", "are gone"),
    ],
)
def test_a_damaged_challenger_is_refused_by_name_and_costs_no_look(
    bench: TestBench,
    versions: Versions,
    ask: Callable[..., Decision],
    promotions: Promotions,
    tmp_path: Path,
    how: str,
    name: str,
    words: str,
) -> None:
    ref = copy_version(bench.tracker, versions["better"], tmp_path)
    file = model_folder(bench.tracker, ref) / "weights.safetensors"
    if how == "nan":
        change_weights(bench.tracker, ref, "hidden.weight", math.nan)
    elif how == "overflow":
        change_weights(bench.tracker, ref, "output.bias", 3e38)
        change_weights(bench.tracker, ref, "output.weight", 3e38)
    elif how == "swapped":
        shutil.copy(model_folder(bench.tracker, versions["worse"]) / file.name, file)
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-7])
    elif how == "removed":
        file.unlink()
    else:
        shutil.rmtree(file.parent)
    decision = ask(ref)
    assert decision.outcome == REFUSED and decision.look is None
    assert decision.reason.startswith(f"{name}: ") and words in decision.reason
    others = {"overflow": ["integrity: finite"]}.get(how, [])
    assert failed(decision) == [name, *others]
    assert promotions.champion(MODEL).version == versions["first"].version  # type: ignore[union-attr]
    assert ask(versions["same"]).look.number == 1  # type: ignore[union-attr]


def test_other_weights_with_a_manifest_of_their_own_do_not_answer_as_evaluated(
    bench: TestBench, versions: Versions, ask: Callable[..., Decision], tmp_path: Path
) -> None:
    """Whoever can change the tag, too, still cannot change what the run kept."""
    ref = copy_version(bench.tracker, versions["shuffled"], tmp_path)
    shutil.copytree(
        model_folder(bench.tracker, versions["better"]), model_folder(bench.tracker, ref), dirs_exist_ok=True
    )
    manifest = bench.tracker.client.get_model_version(MODEL, str(versions["better"].version)).tags
    for tag, value in manifest.items():
        bench.tracker.client.set_model_version_tag(MODEL, str(ref.version), tag, value)
    decision = ask(ref)
    assert (decision.outcome, failed(decision)) == (REFUSED, ["integrity: reload"])
    assert "test examples otherwise than when it was evaluated" in decision.reason


def test_an_infinite_metric_is_refused(bench: TestBench, ask: Callable[..., Decision]) -> None:
    metrics = {"accuracy": Interval(0.95, 0.9, 0.97), "log_loss": Interval(math.inf, 0.1, math.inf)}
    decision = ask(add_version(bench, "better", "infinite", metrics=metrics))
    assert (decision.outcome, failed(decision)) == (REFUSED, ["integrity: finite"])
    assert "its metric log_loss is inf" in decision.reason


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("predictions.parquet", "its run kept no answers to compare with"),
        ("evaluation.json", "its run kept no evaluation to compare with"),
    ],
)
@pytest.mark.parametrize("how", ["removed", "damaged"])
def test_a_challenger_without_sound_test_results_is_refused(
    bench: TestBench, ask: Callable[..., Decision], file: str, words: str, how: str
) -> None:
    ref = add_version(bench, "better", f"{file} {how}")
    with bench.tracker.artifact(ref.run_id, file) as path:
        path.unlink() if how == "removed" else path.write_bytes(b"[]")
    decision = ask(ref)
    assert (decision.outcome, failed(decision)) == (REFUSED, ["integrity: reload"])
    assert (
        words if (how, file) != ("damaged", "predictions.parquet") else "is no file of predictions"
    ) in decision.reason


@pytest.fixture
def broken_champion(
    bench: TestBench, versions: Versions, ask: Callable[..., Decision], tmp_path: Path
) -> Iterator[ModelRef]:
    """A champion that is sound when it is promoted; damaged by the test."""
    ref = copy_version(bench.tracker, versions["first"], tmp_path)
    assert ask(ref).outcome == FIRST
    yield ref


@pytest.mark.parametrize("how", ["files", "version"])
def test_a_champion_that_is_gone_stops_the_comparison_but_not_a_person(
    bench: TestBench,
    versions: Versions,
    broken_champion: ModelRef,
    ask: Callable[..., Decision],
    promotions: Promotions,
    how: str,
) -> None:
    if how == "files":
        shutil.rmtree(model_folder(bench.tracker, broken_champion))
    else:
        bench.tracker.client.delete_model_version(MODEL, str(broken_champion.version))
    history = promotions.history(MODEL)
    with pytest.raises(AssayError) as raised:
        ask(versions["better"])
    assert isinstance(raised.value, ModelFileError)
    assert "It is the champion, so nothing can be compared with it and nothing was moved." in str(raised.value)
    assert f"models:/{MODEL}/{broken_champion.version}" in str(raised.value) and "\n" not in str(raised.value)
    assert promotions.history(MODEL) == history and promotions.decisions(MODEL, versions["better"].version) == ()

    forced = ask(versions["better"], forced_reason="the champion's disk died")
    assert (forced.outcome, forced.champion, forced.look) == (KEPT, broken_champion.version, None)
    assert "not compared with the champion" in forced.reason
    head = promotions.champion(MODEL)
    assert head is not None and (head.version, head.action) == (versions["better"].version, "forced")
    assert aliases(bench)["champion"] == versions["better"].version


def test_a_champion_that_answers_nan_is_no_measure(
    bench: TestBench, versions: Versions, broken_champion: ModelRef, ask: Callable[..., Decision]
) -> None:
    change_weights(bench.tracker, broken_champion, "hidden.weight", math.nan)
    decision = ask(versions["better"])
    assert (decision.outcome, failed(decision)) == (KEPT, ["champion's answers"])
