"""What a trial's model answered on val, at every look: all that verdicts are made from.

An ``.npz`` file with ``labels`` (int32 ``[example]``), ``epochs`` (int32 ``[look]``), ``predictions`` (int32 ``[look,
example]``) and ``log_losses`` (float32 ``[look, example]``). The same answers give the same bytes.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from assay.errors import DataError
from assay.files import replace_file


@dataclass(frozen=True)
class Outcomes:
    """A trial's answers on val.

    Attributes:
        labels: True classes, int32 ``[example]``.
        epochs: Epochs after which the model was asked, int32 ``[look]``, rising.
        predictions: Its answers, int32 ``[look, example]``.
        log_losses: ``-ln p`` of the true class, float32 ``[look, example]``.
    """

    labels: np.ndarray
    epochs: np.ndarray
    predictions: np.ndarray
    log_losses: np.ndarray

    @classmethod
    def none(cls, labels: np.ndarray) -> Self:
        """Return the outcomes of a model that was not asked yet.

        Args:
            labels: True classes, int ``[example]``.
        """
        shape = (0, len(labels))
        return cls(
            labels.astype(np.int32), np.empty(0, np.int32), np.empty(shape, np.int32), np.empty(shape, np.float32)
        )

    def with_look(self, epoch: int, predictions: np.ndarray, log_losses: np.ndarray) -> Self:
        """Return these outcomes and those after another epoch; a look at the same epoch or a later one is replaced.

        Args:
            epoch: Epochs trained.
            predictions: Answers, int ``[example]``.
            log_losses: ``-ln p`` of the true class, float ``[example]``.
        """
        kept = self.epochs < epoch
        return type(self)(
            self.labels,
            np.append(self.epochs[kept], np.int32(epoch)),
            np.vstack([self.predictions[kept], predictions[None].astype(np.int32)]),
            np.vstack([self.log_losses[kept], log_losses[None].astype(np.float32)]),
        )

    def at(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the answers and log-losses at the last look up to an epoch; a run that ended early stays as it ended.

        Raises:
            DataError: There was no look by then.
        """
        look = int(np.searchsorted(self.epochs, epoch, side="right")) - 1
        if look < 0:
            raise DataError(
                f"the trial was not asked by epoch {epoch}: its first look is at {self.epochs[:1].tolist()}."
            )
        return self.predictions[look], self.log_losses[look]


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Write a trial's answers so that a process that crashes leaves the old file or the new one, whole.

    Raises:
        OSError: The file cannot be written.
    """
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        labels=outcomes.labels,
        epochs=outcomes.epochs,
        predictions=outcomes.predictions,
        log_losses=outcomes.log_losses,
    )
    replace_file(path, buffer.getvalue(), is_synced=False)


def read_outcomes(path: Path) -> Outcomes:
    """Read what `write_outcomes` wrote.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return Outcomes(arrays["labels"], arrays["epochs"], arrays["predictions"], arrays["log_losses"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: cannot be read as a trial's answers ({error}). Delete its run in MLflow and ablate again: only "
            "this trial is trained again."
        ) from error
