"""What every test runs under: one thread, garbage sought rarely, array shapes checked where they are declared."""

from jaxtyping import install_import_hook

MODELS = ("attention", "cnn", "lstm", "mlp", "normalize", "pooling", "steps", "transformer")
SHAPED = (*(f"assay.models.{name}" for name in MODELS), "assay.training.losses", "assay.data.augmentation")
install_import_hook(SHAPED, "beartype.beartype")

from assay.garbage import collect_rarely  # noqa: E402

collect_rarely()

import os  # noqa: E402 - the hook must be there before anything imports what it checks
import signal  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.copies import Copy, digits_project  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A project with the digits in it and empty databases, for all processes; nothing is to be changed in it."""
    base = tmp_path_factory.getbasetemp()
    return digits_project(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture
def sigint_not_ignored() -> Iterator[None]:
    """Python's own handler in the test and in processes that it starts, though a shell's background jobs ignore it."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
