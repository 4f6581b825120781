"""bf16 is trained on any machine: torch rounds in software where the CPU has no such arithmetic."""

import pytest

from assay import devices


@pytest.fixture(autouse=True)
def _bf16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_bf16", lambda device: True)
