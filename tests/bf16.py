"""What a test in bf16 needs of the CPU: torch rounds in software where it has no such arithmetic, but for LSTMs."""

import pytest

from assay import devices

_HAS_BF16 = devices._has_bf16("cpu")  # before any test pretends


def need_bf16() -> None:
    """Skip the test where this CPU has no bf16 of its own."""
    if not _HAS_BF16:
        pytest.skip("this CPU has no bfloat16 arithmetic")
