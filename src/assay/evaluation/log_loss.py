"""The log-loss of single examples; apart from the other metrics, because it needs no scikit-learn."""

import numpy as np


def true_class_loss(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return each example's log-loss ``-ln p_true``, float64 ``[example]``, bounded as scikit-learn bounds it."""
    smallest = np.finfo(np.float64).eps
    true = probabilities[np.arange(len(labels)), labels]
    loss: np.ndarray = -np.log(np.clip(true, smallest, 1.0 - smallest))
    return loss
