"""What every test runs under: one thread, garbage sought rarely, array shapes checked where they are declared."""

from jaxtyping import install_import_hook

MODELS = ("attention", "cnn", "lstm", "mlp", "normalize", "pooling", "steps", "transformer")
SHAPED = (*(f"assay.models.{name}" for name in MODELS), "assay.training.losses", "assay.data.augmentation")
install_import_hook(SHAPED, "beartype.beartype")

from assay.garbage import collect_rarely  # noqa: E402

collect_rarely()

import pytest  # noqa: E402 - the hook must be there before anything imports what it checks
import torch  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
