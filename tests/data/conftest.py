from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assay.project import Project
from tests.data.made import pictures

Folders = dict[str, list[np.ndarray]]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "project"
    root.mkdir()
    (root / "params.yaml").touch()
    return Project(root=root, home=root / ".assay")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes ``{"train/cat": [pixels, ...]}`` as numbered PNG files below a new folder."""

    def write(folders: Folders, name: str = "pictures") -> Path:
        for place, images in folders.items():
            (tmp_path / name / place).mkdir(parents=True)
            for number, pixels in enumerate(images):
                Image.fromarray(pixels).save(tmp_path / name / place / f"{number:03d}.png")
        return tmp_path / name

    return write


@pytest.fixture
def two_classes(rng: np.random.Generator, write_folder: Callable[..., Path]) -> Path:
    return write_folder({name: list(pictures(rng, 6)) for name in ("cat", "dog")})
