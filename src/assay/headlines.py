"""The metrics that people see first, in order, and what they are called."""

HEADLINES = {
    "accuracy": "accuracy",
    "f1_macro": "F1, macro",
    "precision_macro": "precision, macro",
    "recall_macro": "recall, macro",
    "roc_auc_macro": "ROC-AUC, macro",
    "log_loss": "log-loss",
    "expected_calibration_error": "calibration error",
}
"""Metric -> its label."""

LOWER_IS_BETTER = frozenset({"log_loss", "expected_calibration_error"})

BASELINES = {"majority_class": "majority class", "logistic_regression": "logistic regression"}
"""Baseline -> its label."""
