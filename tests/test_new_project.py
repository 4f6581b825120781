"""A project of one's own: complete, or not there at all; its first data chooses its params unless a person did."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assay.data.versioning import read_pin, verify
from assay.errors import AssayError, DataError, ProjectError, SourceError
from assay.new_project import PRESETS, begin, is_untouched, make_project, preset_text
from assay.params import DataParams, load_params
from assay.project import find_project

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASSAY_HOME", raising=False)


def tree(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def write_table(path: Path, num_rows: int = 120, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    lines = [f"{a:.4f},{b:.4f},{'yes' if a > b else 'no'}" for a, b in rng.normal(size=(num_rows, 2))]
    path.write_text("\n".join(["height,weight,tall", *lines]) + "\n")
    return path


def write_pictures(folder: Path, classes: tuple[str, ...]) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("preset", PRESETS)
def test_a_new_project_has_the_files_of_this_repository(preset: str, tmp_path: Path) -> None:
    project = make_project(tmp_path / "shop", preset)
    files = tree(project.root)
    for file in [
        *(ROOT / "flows").glob("*.py"),
        *(ROOT / "mlflow").iterdir(),
        ROOT / ".gitignore",
        ROOT / ".dvcignore",
    ]:
        assert files[str(file.relative_to(ROOT))] == file.read_bytes()
    assert not project.pin_file.exists()
    assert find_project(project.root) == project
    assert "assay data import" in files["README.md"].decode()


@pytest.mark.parametrize("preset", PRESETS)
def test_its_params_are_the_preset_on_the_data_it_will_pin(preset: str, tmp_path: Path) -> None:
    found = load_params(make_project(tmp_path / "shop", preset).params_file)
    given = load_params(ROOT / PRESETS[preset])
    assert found.data.is_pinned
    assert found.registry.model_name == "shop"
    assert (found.model, found.train, found.gate) == (given.model, given.train, given.gate)


def test_git_ignores_data_and_state(tmp_path: Path) -> None:
    project = make_project(tmp_path / "shop")
    subprocess.run(["git", "init", "--quiet", str(project.root)], check=True)
    for name in ("data/x.parquet", ".assay/mlflow.db", ".dvc/cache/x"):
        ignored = subprocess.run(["git", "-C", str(project.root), "check-ignore", "--quiet", name])
        assert ignored.returncode == 0, name
    for name in ("flows/pipeline.py", "data.dvc", "params.yaml"):
        kept = subprocess.run(["git", "-C", str(project.root), "check-ignore", "--quiet", name])
        assert kept.returncode == 1, name


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ProjectError, match=r"is not empty.*Name a folder") as caught:
        make_project(tmp_path)
    assert caught.value.exit_code == 2
    assert tree(tmp_path) == {"mine.txt": b"mine"}
    with pytest.raises(ProjectError, match=r"mine\.txt: is a file"):
        make_project(tmp_path / "mine.txt")


def test_a_name_with_odd_characters_is_a_model_name(tmp_path: Path) -> None:
    project = make_project(tmp_path / "käse & brot!")
    assert load_params(project.params_file).registry.model_name == "käse-brot"


def test_data_in_an_empty_folder_makes_a_project_that_fits_it(tmp_path: Path) -> None:
    table = write_table(tmp_path / "people.csv")
    (tmp_path / "shop").mkdir()
    begun = begin(tmp_path / "shop", DataParams(path=str(table)))
    params = load_params(begun.project.params_file)
    assert begun.is_new and begun.choices
    assert params.model.kind == "mlp"
    assert params.registry.model_name == "people"
    assert begun.project.params_file.read_text().startswith("# Every choice of a run on a table.")
    assert verify(begun.project).num_examples == 120


def test_the_data_may_lie_in_the_folder_itself(tmp_path: Path) -> None:
    table = write_table(tmp_path / "people.csv")
    before = table.read_bytes()
    begun = begin(tmp_path, DataParams(path="people.csv", options={"label_column": "tall", "drop_columns": ["weight"]}))
    assert read_pin(begun.project).columns == ("height",)
    assert table.read_bytes() == before


def test_images_of_words_are_mirrored(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    begun = begin(tmp_path / "shop", DataParams(path=str(write_pictures(tmp_path / "zoo", ("cat", "dog")))))
    text = begun.project.params_file.read_text()
    assert "horizontal_flip: true" in text
    assert load_params(begun.project.params_file).registry.model_name == "zoo"


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "a,label\n1,x\n2,x\n"])
def test_what_cannot_be_imported_leaves_no_project_behind(content: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(content)
    (tmp_path / "shop").mkdir()
    with pytest.raises(DataError):
        begin(tmp_path / "shop", DataParams(path=str(tmp_path / "bad.csv")))
    assert not list((tmp_path / "shop").iterdir())


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.csv: does not exist"):
        begin(tmp_path, DataParams(path="none.csv"))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_things_in_it_becomes_no_project(tmp_path: Path) -> None:
    write_table(tmp_path / "people.csv")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ProjectError, match=r"holds thesis\.txt"):
        begin(tmp_path, DataParams(path="people.csv"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["people.csv", "thesis.txt"]


def test_data_where_a_project_keeps_its_own_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", ("cat", "dog"))
    with pytest.raises(ProjectError, match="Move the data elsewhere"):
        begin(tmp_path, DataParams(path="data"))


def test_a_project_without_data_takes_it_and_its_untouched_params_follow(tmp_path: Path) -> None:
    project = make_project(tmp_path / "shop")
    assert is_untouched(project)
    begun = begin(project.root, DataParams(path=str(write_table(tmp_path / "people.csv"))))
    assert not begun.is_new
    assert load_params(project.params_file).model.kind == "mlp"


def test_params_that_a_person_changed_stay(tmp_path: Path) -> None:
    project = make_project(tmp_path / "shop", "tabular")
    text = project.params_file.read_text().replace("num_epochs: 100", "num_epochs: 7")
    project.params_file.write_text(text)
    begun = begin(project.root, DataParams(path=str(write_table(tmp_path / "people.csv"))))
    assert not begun.choices
    assert project.params_file.read_text() == text


def test_pinned_data_is_never_replaced(tmp_path: Path) -> None:
    project = make_project(tmp_path / "shop")
    table, other = write_table(tmp_path / "people.csv"), write_table(tmp_path / "others.csv", seed=1)
    begin(project.root, DataParams(path=str(table)))
    before = project.pin_file.read_bytes()
    with pytest.raises(DataError, match=r"Nothing was changed.*assay data import table .*others\.csv"):
        begin(project.root, DataParams(path=str(other)))
    again = begin(project.root, DataParams(path=str(table)))
    assert again.report is None and not again.choices
    assert project.pin_file.read_bytes() == before
    assert not list((project.home / "datasets").iterdir())


def test_a_preset_is_edited_without_losing_a_comment() -> None:
    for preset, file in PRESETS.items():
        comments = (ROOT / file).read_text().count("#")
        assert preset_text(preset, "shop", {"train.num_epochs": 3}).count("#") == comments


def test_a_folder_that_cannot_be_written_is_a_paragraph(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AssayError):
        make_project(tmp_path / "file" / "shop")
