"""One project with its services up, for all tests of a file."""

from collections.abc import Iterator

import pytest

from tests.copies import Copy, copy_data, copy_home, copy_project
from tests.line.line import Line


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, digits_data: Copy, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A project with the digits in it; its databases are there already, unless the test's file says IS_NEW.

    Its servers want credentials where the test's file has AUTH, ``user:password``.
    """
    copy = copy_project(tmp_path_factory.mktemp("line") / "project")
    params = copy.root / "params.yaml"
    # On 1,257 digits logistic regression is as good as the model that these tests have the time for.
    text = params.read_text().replace("baselines: [majority_class, logistic_regression]", "baselines: [majority_class]")
    params.write_text(text.replace("max_calibration_error: 0.1", "max_calibration_error: null"))
    copy_data(digits_data, copy)
    if hasattr(request.module, "AUTH"):
        copy.environment["ASSAY_AUTH"] = request.module.AUTH
    if not getattr(request.module, "IS_NEW", False):
        copy_home(digits_data, copy)
    return copy


@pytest.fixture(scope="module")
def line(request: pytest.FixtureRequest, folder: Copy) -> Iterator[Line]:
    """A project with the digits whose services are up, with the workers that the test's file asks for in SERVICES."""
    line = Line(folder, request.module.SERVICES)
    try:
        line.up()
        yield line
    finally:
        line.copy.assay("down")
        left = line.processes()
        for process in left:
            process.kill()
        assert left == []
