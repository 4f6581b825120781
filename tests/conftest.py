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
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.copies import Copy, digits_project  # noqa: E402
from tests.tracking.parts import mlflow_server, shared  # noqa: E402

LONGEST_FIRST = (
    "line/test_line.py",
    "flows/test_gate.py",
    "flows/test_pipeline.py",
    "flows/test_ablate.py",
    "line/test_devices.py",
    "line/test_browser.py",
    "flows/test_nightly.py",
    "flows/test_ray.py",
    "flows/test_bad_requests.py",
    "registry/test_export.py",
)
"""Files that take longest: begun first, so that at the end no process is left alone with one of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; each file's tests keep their order."""
    order = {str(Path(__file__).parent / name): place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(str(item.path), len(order)))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes that run these tests."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def digits_data(shared_folder: Path) -> Copy:
    """A project with the digits in it and empty databases, for all processes; nothing is to be changed in it."""
    return digits_project(shared_folder)


@pytest.fixture(scope="session")
def server_uri(shared_folder: Path) -> Iterator[str]:
    """Address of an MLflow server, the same for all processes."""
    folder = shared_folder / "mlflow-server"
    with shared(folder, mlflow_server(folder)) as uri:
        yield uri


@pytest.fixture
def sigint_not_ignored() -> Iterator[None]:
    """Python's own handler in the test and in processes that it starts, though a shell's background jobs ignore it."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
