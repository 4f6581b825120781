"""What the gate decided about a registered version, and on what grounds."""

from dataclasses import dataclass, field

from assay.records.base import Record

PROMOTED = "promoted"
KEPT = "kept champion"
FIRST = "first champion"
REFUSED = "refused"
OUTCOMES = (PROMOTED, KEPT, FIRST, REFUSED)
"""The challenger is better; it is sound and not shown to be better; there was no champion; it must not be one."""


@dataclass(frozen=True)
class Rule(Record):
    """One rule of the gate and what it found.

    Attributes:
        name: Short name, e.g. ``floor: accuracy``, ``superiority``, ``class: seven``.
        state: ``passed``, ``failed``, or ``not asked`` where it does not apply or cannot tell.
        reason: One sentence for people, with the numbers.
        decides: What a failure means: ``refused``, or ``kept champion``.
        values: Name -> number behind the sentence, e.g. ``difference``, ``low``, ``high``, ``p``, ``alpha``.
    """

    name: str
    state: str
    reason: str
    decides: str
    values: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether it stands against the challenger."""
        return self.state == "failed"


@dataclass(frozen=True)
class Look(Record):
    """One use of a test set to compare two versions.

    Attributes:
        test_set: Digest of the data's md5 and of the test rows.
        number: 1 for the first look at this test set.
        max_looks: The budget.
        alpha: Chance of a false promotion that this look may spend; all looks together stay below ``gate.alpha``.
    """

    test_set: str
    number: int
    max_looks: int
    alpha: float

    @property
    def is_spent(self) -> bool:
        """Whether the budget was used up before this look."""
        return self.number > self.max_looks


@dataclass(frozen=True)
class Decision(Record):
    """What the gate decided; kept in the ledger, where nobody edits it.

    Attributes:
        outcome: One of `OUTCOMES`.
        reason: One sentence for people: the rules that decided.
        model_name: Registered model.
        version: The challenger.
        champion: The champion that it met; None where there was none.
        rules: Every rule, in the order that people read them.
        look: The look at the test set; None where it came to none.
        data_md5: DVC's hash of the data.
        num_test: Test examples that both answered.
        decided_ms: Unix time in ms.
        seconds: Wall time of the comparison.
        forced_reason: Why a person promoted it in spite of the gate; empty if nobody did.
        flow_run_id: Flow run that asked; empty for the command line.
        params_sha256: SHA-256 (hex) of what the gate asked for.
    """

    outcome: str
    reason: str
    model_name: str
    version: int
    champion: int | None
    rules: tuple[Rule, ...]
    look: Look | None
    data_md5: str
    num_test: int
    decided_ms: int
    seconds: float = 0.0
    forced_reason: str = ""
    flow_run_id: str = ""
    params_sha256: str = ""

    @property
    def moves_champion(self) -> bool:
        """Whether the challenger becomes the champion."""
        return self.outcome in (PROMOTED, FIRST) or bool(self.forced_reason)


@dataclass(frozen=True)
class Promotion(Record):
    """One line of a model's history: who became champion, when and why. Lines are added and never changed.

    Attributes:
        model_name: Registered model.
        fence: 1 for the first line, then one more each: a promotion that was decided against an older line is void.
        version: The new champion.
        previous: The champion before; None for the first.
        action: ``promoted``, ``first champion``, ``forced``, ``rolled back``.
        reason: One sentence.
        decided_ms: Unix time in ms.
        decision_id: Number of the gate's decision in the ledger; None for a rollback.
    """

    model_name: str
    fence: int
    version: int
    previous: int | None
    action: str
    reason: str
    decided_ms: int
    decision_id: int | None = None
