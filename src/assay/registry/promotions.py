"""Who is champion: what the gate decided and how a model's champions followed each other, in lines nobody edits."""

import json
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from assay.errors import AssayError
from assay.records import FIRST, PROMOTED, Decision, Look, Promotion
from assay.registry import looks
from assay.registry.ledger import Ledger
from assay.registry.schema import decisions, promotions

FORCED = "forced"
ROLLED_BACK = "rolled back"


class StaleDecisionError(Exception):
    """Another champion came in since the versions were compared: compare anew, with that one. Not for users.

    Attributes:
        champion: The present champion; None where there is none.
    """

    def __init__(self, champion: Promotion | None) -> None:
        found = "none" if champion is None else f"version {champion.version} (fence {champion.fence})"
        super().__init__(f"the champion is now {found}")
        self.champion = champion


class Promotions:
    """The decisions and champions of one MLflow store's models.

    A model's history is a line: each promotion has the fence after the last one's and names its version as previous.

    Args:
        ledger: The project's ledger.
        registry: The MLflow store that the versions live in, without its password: `Store.shown_uri`.
    """

    def __init__(self, ledger: Ledger, registry: str) -> None:
        self.ledger = ledger
        self.registry = registry

    def promote(self, decision: Decision, expected_fence: int) -> Promotion:
        """Make the challenger champion, if the champion is still the one that it was compared with.

        Args:
            decision: One that moves the champion.
            expected_fence: Fence of the champion that it was decided against; 0 where there was none.

        Returns:
            The model's new last line; it and the decision are written together.

        Raises:
            StaleDecisionError: The champion is another one by now; nothing was written.
            AssayError: The version is the champion already.
            ServiceError: The database fails.
        """
        assert decision.moves_champion, "a decision that keeps the champion is recorded, not promoted"
        name = decision.model_name
        with self._locked(name) as connection:
            head = self._head(connection, name)
            found = (0, None) if head is None else (head.fence, head.version)
            if found != (expected_fence, decision.champion):
                raise StaleDecisionError(head)
            if head is not None and head.version == decision.version:
                raise AssayError(f"models:/{name}/{decision.version}: is the champion already. Nothing was changed.")
            decision_id = self._add_decision(connection, decision)
            action = FORCED if decision.forced_reason else FIRST if head is None else PROMOTED
            reason = decision.forced_reason or decision.reason
            return self._add_promotion(
                connection, head, name, decision.version, action, reason, decision.decided_ms, decision_id
            )

    def record_decision(self, decision: Decision) -> int:
        """Keep a decision that moves nothing.

        Returns:
            Its number in the ledger.

        Raises:
            ServiceError: The database fails.
        """
        assert not decision.moves_champion, "a decision that moves the champion is promoted"
        with self._locked(decision.model_name) as connection:
            return self._add_decision(connection, decision)

    def rollback(
        self, model_name: str, to: int | None = None, reason: str = "", versions: Collection[int] | None = None
    ) -> Promotion:
        """Make an earlier champion champion again.

        Without `to` it is the champion that the present one took over from (see `champions_in_line`), so that doing
        it again goes farther back and never forth.

        Args:
            model_name: Registered model.
            to: A version that has been champion.
            reason: One sentence, for people.
            versions: Versions that the registry still has; others are passed over. All by default.

        Returns:
            The model's new last line.

        Raises:
            AssayError: There is no earlier champion, or `to` has not been one, is the present one, or is gone.
            ServiceError: The database fails.
        """
        with self._locked(model_name) as connection:
            history = self._history(connection, model_name)
            target = _rollback_target(model_name, history, to, versions)
            said = reason or f"Rolled back from version {history[-1].version}."
            now_ms = int(time.time() * 1000)
            return self._add_promotion(connection, history[-1], model_name, target, ROLLED_BACK, said, now_ms, None)

    def champion(self, model_name: str) -> Promotion | None:
        """Return the last line of a model's history: its version is the champion."""
        with self.ledger.reading() as connection:
            return self._head(connection, model_name)

    def history(self, model_name: str) -> tuple[Promotion, ...]:
        """Return a model's promotions and rollbacks, the first one first."""
        with self.ledger.reading() as connection:
            return self._history(connection, model_name)

    def decision(self, decision_id: int) -> Decision | None:
        """Return what the gate decided under this number, if anything."""
        with self.ledger.reading() as connection:
            query = select(decisions.c.decision).filter_by(registry=self.registry, id=decision_id)
            text = connection.execute(query).scalar_one_or_none()
        return None if text is None else Decision.from_json(json.loads(text))

    def decisions(self, model_name: str, version: int | None = None) -> tuple[tuple[int, Decision], ...]:
        """Return what the gate decided about a model, each with its number, the latest first.

        Args:
            model_name: Registered model.
            version: Only decisions about this challenger.
        """
        query = select(decisions.c.id, decisions.c.decision)
        query = query.filter_by(registry=self.registry, model_name=model_name).order_by(decisions.c.id.desc())
        if version is not None:
            query = query.filter_by(version=version)
        with self.ledger.reading() as connection:
            rows = connection.execute(query).all()
        return tuple((row.id, Decision.from_json(json.loads(row.decision))) for row in rows)

    def take_look(
        self, test_set: str, model_name: str, version: int, champion: int, max_looks: int, alpha: float
    ) -> Look:
        """Count a look at a test set before anything is seen: `assay.registry.looks.take_look`."""
        return looks.take_look(self.ledger, self.registry, test_set, model_name, version, champion, max_looks, alpha)

    @contextmanager
    def held(self, model_name: str) -> Iterator[tuple[tuple[Promotion, ...], tuple[int, ...]]]:
        """Keep everybody from changing a model's champion while the block runs.

        Yields:
            The model's committed history, and the versions that met the gate, the highest first.

        Raises:
            ServiceError: The database fails.
        """
        with self._locked(model_name) as connection:
            query = select(decisions.c.version).filter_by(registry=self.registry, model_name=model_name)
            met = connection.execute(query.distinct().order_by(decisions.c.version.desc())).scalars().all()
            yield self._history(connection, model_name), tuple(met)

    @contextmanager
    def _locked(self, model_name: str) -> Iterator[Connection]:
        with self.ledger.writing(f"model {self.registry} {model_name}") as connection:
            yield connection

    def _lines(self, model_name: str) -> Select[Any]:
        return select(promotions).filter_by(registry=self.registry, model_name=model_name)

    def _head(self, connection: Connection, model_name: str) -> Promotion | None:
        row = connection.execute(self._lines(model_name).order_by(promotions.c.fence.desc()).limit(1)).first()
        return None if row is None else _promotion(row)

    def _history(self, connection: Connection, model_name: str) -> tuple[Promotion, ...]:
        rows = connection.execute(self._lines(model_name).order_by(promotions.c.fence)).all()
        return tuple(_promotion(row) for row in rows)

    def _add_decision(self, connection: Connection, decision: Decision) -> int:
        values = {
            "registry": self.registry,
            "model_name": decision.model_name,
            "version": decision.version,
            "champion": decision.champion,
            "outcome": decision.outcome,
            "decided_ms": decision.decided_ms,
            "decision": json.dumps(decision.to_json()),
        }
        key = connection.execute(decisions.insert().values(values)).inserted_primary_key
        assert key is not None
        return int(key[0])

    def _add_promotion(
        self,
        connection: Connection,
        head: Promotion | None,
        model_name: str,
        version: int,
        action: str,
        reason: str,
        decided_ms: int,
        decision_id: int | None,
    ) -> Promotion:
        fence, previous = (1, None) if head is None else (head.fence + 1, head.version)
        line = Promotion(model_name, fence, version, previous, action, reason, decided_ms, decision_id)
        connection.execute(promotions.insert().values(line.to_json() | {"registry": self.registry}))
        return line


def champions_in_line(history: Collection[Promotion]) -> tuple[int, ...]:
    """Return the champions from the first to the present one as if what was rolled back had never been.

    A promotion adds its version at the end. A rollback takes versions from the end until it comes to its own; to a
    version that is no longer in the line it counts as a promotion. So the one before last is what the present
    champion took over from: after 1, 2, 3 and a rollback to 2 it is 1.

    Args:
        history: A model's promotions and rollbacks, the first one first.
    """
    line: list[int] = []
    for promotion in history:
        if promotion.action == ROLLED_BACK and promotion.version in line:
            while line[-1] != promotion.version:
                line.pop()
        else:
            line.append(promotion.version)
    return tuple(line)


def _rollback_target(
    name: str, history: tuple[Promotion, ...], to: int | None, versions: Collection[int] | None
) -> int:
    """Choose the version to roll back to, or say why there is none."""
    if not history:
        raise AssayError(f"{name}: has no champion to roll back from. Promote a version first.")
    present = history[-1].version
    before = dict.fromkeys(promotion.version for promotion in reversed(history) if promotion.version != present)
    usable = [version for version in before if versions is None or version in versions]
    offered = f"Versions that have been: {', '.join(map(str, usable)) or 'none'}."
    if to is None:
        for version in reversed(champions_in_line(history)[:-1]):
            if version in usable:
                return version
        raise AssayError(f"models:/{name}/{present}: no champion came before it that could be one again. {offered}")
    if to == present:
        raise AssayError(f"models:/{name}/{to}: is the champion already. {offered}")
    if to not in before:
        raise AssayError(
            f"models:/{name}/{to}: has never been champion, so nothing can be rolled back to it. {offered}"
        )
    if to not in usable:
        raise AssayError(f"models:/{name}/{to}: is not in the registry any more. {offered}")
    return to


def _promotion(row: "Row[Any]") -> Promotion:
    values = {name: value for name, value in row._mapping.items() if name != "registry"}
    return Promotion.from_json(values)
