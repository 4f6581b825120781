"""What a process is told of a trial; importing it imports no torch."""

from dataclasses import dataclass
from typing import Any

from assay.records import DataRef, Record, Splits, StartRef


@dataclass(frozen=True)
class TrialJob(Record):
    """All that a process needs to know to train one trial up to a look.

    Attributes:
        variant: Name of the variant.
        seed: Value of ``train.seed``.
        key: Digest of the trial's run key.
        params: Params of the trial, as JSON values.
        data: The verified data.
        splits: Its division.
        cache_dir: Folder of decoded data.
        run_dir: Folder of this trial alone.
        looks: Epochs after which the model is asked, rising; training goes up to the last of them.
        start: The files that training starts from; None without any.
    """

    variant: str
    seed: int
    key: str
    params: dict[str, Any]
    data: DataRef
    splits: Splits
    cache_dir: str
    run_dir: str
    looks: tuple[int, ...]
    start: StartRef | None = None

    @property
    def until_epoch(self) -> int:
        """Epoch to train up to."""
        return self.looks[-1]

    @property
    def name(self) -> str:
        """What people see: the variant and its seed."""
        return f"{self.variant}, seed {self.seed}"
