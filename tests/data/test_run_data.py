"""The data of a run: the project's own pin, or a source beside it; neither touches the other."""

from pathlib import Path

import pytest

from assay.data.importing import import_data
from assay.data.run_data import data_of_run
from assay.errors import DataError, PinMismatchError
from assay.params import DataParams
from assay.project import Project, project_at

DIGITS = DataParams(source="digits")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("ASSAY_HOME", raising=False)
    (tmp_path / "params.yaml").touch()
    return project_at(tmp_path)


def write_table(path: Path, *rows: str) -> None:
    path.write_text("\n".join(["height,weight,tall", *rows]) + "\n")


ROWS = [f"{number * 3 % 17}.5,{number * 7 % 11}.25,{'yes' if number % 2 else 'no'}" for number in range(40)]


def test_nothing_named_is_what_is_pinned(project: Project) -> None:
    with pytest.raises(DataError, match="no data is pinned yet"):
        data_of_run(project, DataParams())
    pinned = import_data(project, "digits").data
    assert data_of_run(project, DataParams()) == pinned


def test_named_data_lies_beside_what_is_pinned(project: Project) -> None:
    write_table(project.root / "people.csv", *ROWS)
    import_data(project, "table", project.root / "people.csv")
    before = project.pin_file.read_bytes()
    found = data_of_run(project, DIGITS)
    assert (found.source, found.num_examples) == ("digits", 1797)
    assert project.pin_file.read_bytes() == before
    assert data_of_run(project, DataParams()).source == "table"
    assert Path(found.path).is_relative_to(project.home)


def test_named_data_has_the_hash_that_it_has_when_pinned(project: Project) -> None:
    assert data_of_run(project, DIGITS).md5 == import_data(project, "digits").data.md5


def test_named_data_is_imported_once(project: Project) -> None:
    write_table(project.root / "people.csv", *ROWS)
    wanted = DataParams(path="people.csv", options={"label_column": "tall"})
    first = data_of_run(project, wanted)
    (project.root / "people.csv").unlink()
    assert data_of_run(project, wanted) == first


def test_other_options_are_other_data(project: Project) -> None:
    write_table(project.root / "people.csv", *ROWS)
    whole = data_of_run(project, DataParams(path="people.csv"))
    less = data_of_run(project, DataParams(path="people.csv", options={"drop_columns": "weight"}))
    assert (whole.columns, less.columns) == (("height", "weight"), ("height",))
    assert data_of_run(project, DataParams(path="people.csv")) == whole


def test_lost_data_comes_back_and_changed_data_is_refused(project: Project) -> None:
    found = data_of_run(project, DIGITS)
    shard = next(Path(found.path).iterdir())
    shard.unlink()
    assert data_of_run(project, DIGITS) == found
    with shard.open("ab") as file:
        file.write(b"x")
    with pytest.raises(PinMismatchError, match=r"datasets/digits is removed, the next run imports it anew"):
        data_of_run(project, DIGITS)


def test_an_unknown_source_is_named_and_leaves_nothing(project: Project) -> None:
    with pytest.raises(DataError, match="'moon': there is no such source"):
        data_of_run(project, DataParams(source="moon"))
    assert not list((project.home / "datasets").glob("*/data*"))


@pytest.mark.parametrize("name", ["../up", "a/b", "", "."])
def test_a_source_is_no_path(name: str) -> None:
    with pytest.raises(ValueError, match="source"):
        DataParams(source=name)
    assert "/" not in DataParams(path="../a/b c.csv").name
