import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assay.cli.main import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images with a bad one; the current folder is a project."""
    rng = np.random.default_rng(0)
    for name in ("[cat]", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(tmp_path / f"pictures/{name}/{number}.png")
    (tmp_path / "pictures" / "dog" / "[bad].png").write_bytes(b"x")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "params.yaml").touch()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "pictures"


def test_import_verify_pull_and_describe_agree(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = []
    for words in (["import", "image-folder", str(folder), "--skip-bad"], ["add"], ["verify"], ["pull"], ["describe"]):
        assert main(["data", *words, "--json"]) == 0
        out, err = capsys.readouterr()
        records.append(json.loads(out))
        assert "md5" in err
    assert records[0]["bad_examples"] == ["dog/[bad].png: is no JPEG or PNG image"]
    assert [record["changed"] for record in records[:2]] == [True, False]
    refs = [record.get("data", record) for record in records]
    assert all(ref == refs[0] for ref in refs)
    assert Path(records[-1]["figure"]).is_file()


def test_people_read_names_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "import", "image-folder", str(folder), "--skip-bad", "--size", "4x5"]) == 0
    assert "dog/[bad].png: is no JPEG or PNG image" in (out := capsys.readouterr().out)
    assert "Resized 10 of 10 images to 4x5" in out
    assert main(["data", "describe"]) == 0
    assert "[cat]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify"], "no data is pinned yet"),
        (["import", "mnist"], "there is no such source"),
        (["import", "image-folder", "nowhere"], "nowhere: does not exist"),
        (["import", "image-folder", "../pictures"], "leave such files out with --skip-bad"),
    ],
)
def test_a_wrong_request_is_one_paragraph_and_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["data", *words]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_size_that_is_none_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["data", "import", "image-folder", "x", "--size", "big"])
    assert "'big' is no size; write 32x32" in capsys.readouterr().err


def test_a_table_is_imported_by_its_columns_and_described(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        f"{number % 7};{number * 1.5};{'ab'[number % 2]};{['train', 'test'][number % 5 == 0]}" for number in range(60)
    ]
    (tmp_path / "plants.csv").write_text("\n".join(["width;height;kind;part", *lines]))
    words = ["--label-column", "kind", "--split-column", "part", "--drop-column", "width", "--separator", ";"]
    assert main(["data", "import", "table", str(tmp_path / "plants.csv"), *words]) == 0
    assert "60 rows of 1 column, md5" in capsys.readouterr().out
    assert main(["data", "describe"]) == 0
    out = capsys.readouterr().out
    assert "height: mean 44.25" in out and "missing 0" in out and "Given splits: train 48, test 12" in out


def test_advice_about_columns_is_what_the_command_takes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{number * 1.5},{'ab'[number % 2]}x y" for number in range(60)]
    (tmp_path / "plants.csv").write_text("\n".join(["height,last part", *lines]))
    table = ["data", "import", "table", str(tmp_path / "plants.csv")]
    assert main([*table, "--label-column", "part"]) == 2
    assert "--label-column part: " in capsys.readouterr().err
    assert main([*table, "--label-column", "last part", "--drop-column", "last part"]) == 2
    assert "--label-column 'last part' and --drop-column 'last part': both name" in capsys.readouterr().err


def test_texts_are_imported_by_their_column_and_shown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f'{{"body": "text [{number}] of {number % 2}", "kind": "{number % 2}"}}' for number in range(40)]
    (tmp_path / "notes.jsonl").write_text("\n".join(lines))
    words = ["--text-column", "body", "--label-column", "kind"]
    assert main(["data", "import", "table", str(tmp_path / "notes.jsonl"), *words]) == 0
    assert "40 texts of at most 14 bytes, md5" in capsys.readouterr().out
    assert main(["data", "describe"]) == 0
    out = capsys.readouterr().out
    assert "    text [1] of 1\n" in out and "Near duplicates: 0" in out and "vocabulary: words 44" in out
