"""The gate, asked about versions of every kind: what its tests share."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from assay.records import FIRST, Decision, ModelRef
from assay.registry.contest import TestBench
from assay.registry.ledger import Ledger
from assay.registry.promote import meet_gate
from assay.registry.promotions import Promotions
from assay.tracking.runs import Tracker
from tests.registry.gated import (
    MODEL,
    add_version,
    make_bench,
    make_params,
    make_pictures,
)
from tests.tracking.parts import make_project

Versions = dict[str, ModelRef]
FIELDS = ("first", "same", "better", "worse", "shuffled", "constant")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, template_home: Path) -> TestBench:
    """Today's data in a project with a store that the tests of this file share; 600 test examples."""
    project = make_project(tmp_path_factory.mktemp("gate") / "project")
    shutil.copytree(template_home, project.home)
    return make_bench(Tracker.open(project, "unit"), make_pictures(1200), make_params())


@pytest.fixture(scope="module")
def versions(bench: TestBench) -> Versions:
    return {field: add_version(bench, field) for field in FIELDS}


@pytest.fixture
def promotions(bench: TestBench, tmp_path: Path) -> Iterator[Promotions]:
    """A ledger of the test's own, in which nobody is champion."""
    with closing(Ledger(make_project(tmp_path / "ledger"))) as ledger:
        yield Promotions(ledger, bench.tracker.store.shown_uri)


@pytest.fixture
def ask(bench: TestBench, promotions: Promotions) -> Callable[..., Decision]:
    def meet(ref: ModelRef, on: TestBench = bench, **arguments: str) -> Decision:
        return meet_gate(on, promotions, MODEL, ref.version, **arguments)

    return meet


@pytest.fixture
def champion(versions: Versions, ask: Callable[..., Decision]) -> ModelRef:
    assert ask(versions["first"]).outcome == FIRST
    return versions["first"]


def rule(decision: Decision, name: str) -> str:
    return next(rule.state for rule in decision.rules if rule.name == name)


def failed(decision: Decision) -> list[str]:
    return [rule.name for rule in decision.rules if rule.failed]


def with_gate(bench: TestBench, **gate: object) -> TestBench:
    return dataclasses.replace(bench, params=make_params(**gate))


def aliases(bench: TestBench) -> dict[str, int]:
    found = bench.tracker.client.get_registered_model(MODEL).aliases
    return {alias: int(version) for alias, version in found.items()}
