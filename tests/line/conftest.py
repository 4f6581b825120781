"""One project with its services up, for all tests of a file."""

import shutil
from collections.abc import Iterator

import pytest

from tests.copies import Copy, copy_project
from tests.line.line import Line


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A project into which the digits were imported, once."""
    copy = copy_project(tmp_path_factory.mktemp("line") / "digits")
    params = copy.root / "params.yaml"
    # On 1,257 digits logistic regression is as good as the model that these tests have the time for.
    text = params.read_text().replace("baselines: [majority_class, logistic_regression]", "baselines: [majority_class]")
    params.write_text(text.replace("max_calibration_error: 0.1", "max_calibration_error: null"))
    done = copy.assay("data", "import", "digits")
    assert done.returncode == 0, done.stderr
    return copy


@pytest.fixture(scope="module")
def line(
    request: pytest.FixtureRequest, digits_folder: Copy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Line]:
    """A project with the digits whose services are up, with the workers that the test's file asks for in SERVICES."""
    root = tmp_path_factory.mktemp("project") / "project"
    shutil.copytree(digits_folder.root, root, symlinks=True)
    line = Line(Copy(root, dict(digits_folder.environment)), request.module.SERVICES)
    try:
        line.up()
        yield line
    finally:
        line.copy.assay("down")
        left = line.processes()
        for process in left:
            process.kill()
        assert left == []
