"""Scoring: the bits of evaluation, the pixels of an import, whatever is asked about and however much of it."""

import contextlib
import gc
import hashlib
import io
import json
import resource
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from assay.data import array_files
from assay.data.images import encode_png
from assay.data.importing import import_data
from assay.data.input_batches import InputBatch, Tally, Wanted
from assay.data.inputs import open_inputs
from assay.data.loading import load_dataset
from assay.data.shards import write_shards
from assay.data.sources import Example
from assay.devices import Compute
from assay.errors import (
    AssayError,
    BadExampleError,
    DataError,
    ModelFileError,
    NonFiniteError,
    ParamsError,
    StorageError,
)
from assay.evaluation import answers
from assay.evaluation import predictions as evaluated
from assay.params import Params, load_params
from assay.predict import BATCH_SIZE, PredictReport, find_version, predict, score
from assay.project import Project
from assay.records import DataRef
from assay.registry.load import load_version
from assay.tracking.runs import Tracker
from tests.bf16 import need_bf16
from tests.scoring import NAMES, make_images, make_scoring_project

CPU = Compute("cpu", "fp32", 1)
Score = Callable[..., PredictReport]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield make_scoring_project(tmp_path_factory.mktemp("scoring") / "project")


@pytest.fixture
def ask(project: Project, tmp_path: Path) -> Score:
    """Scores something below the test's folder into ``out/predictions.parquet`` there."""
    (tmp_path / "out").mkdir()

    def ask(source: Path, *overrides: str, **choices: object) -> PredictReport:
        params = load_params(project.params_file, overrides)
        return predict(project, params, source, **{"out": tmp_path / "out" / "predictions.parquet", **choices})

    return ask


def save(path: Path, images: np.ndarray) -> Path:
    np.save(path, images)
    return path


def probabilities(report: PredictReport) -> np.ndarray:
    return np.array(pq.read_table(report.path)["probabilities"].to_pylist())


def write_data(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    write_shards(
        folder,
        (Example(f"{row}.png", encode_png(image), row % 3, None, b"") for row, image in enumerate(images)),
        NAMES,
        has_splits=False,
    )
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_probabilities_are_those_of_evaluation_to_the_last_bit(
    project: Project, ask: Score, tmp_path: Path, precision: str
) -> None:
    if precision == "bf16":
        need_bf16()
    images = make_images(600)
    folder = write_data(tmp_path / "data", images)
    ref = DataRef(str(folder), "0" * 32 + ".dir", "made", 600, NAMES, (8, 6, 3))
    rows = np.random.default_rng(1).permutation(600)[:301]
    model, spec = load_version(Tracker.open(project, "unit"), "pets", 2)
    dataset = load_dataset(ref, tmp_path / "cache")
    expected = evaluated.predict(model, spec, dataset, rows, Compute("cpu", precision, 1))
    report = ask(folder, f"device.precision={precision}")
    table = pq.read_table(report.path)
    assert table["row"].to_pylist() == list(range(600))
    assert table["path"].to_pylist() == [f"{row}.png" for row in range(600)]
    assert probabilities(report)[rows].tobytes() == expected.probabilities.tobytes()
    assert [table["prediction"][int(row)].as_py() for row in rows] == [NAMES[k] for k in expected.predicted]
    assert table["probability"].to_numpy().tobytes() == probabilities(report).max(axis=1).tobytes()
    assert evaluated._BATCH_SIZE == BATCH_SIZE


def test_an_answer_does_not_depend_on_how_many_are_asked_for(ask: Score, tmp_path: Path) -> None:
    images = make_images(300)
    together = probabilities(ask(save(tmp_path / "all.npy", images)))
    alone = [
        probabilities(ask(save(tmp_path / "one.npy", images[row : row + 1]), force=True))[0] for row in (0, 7, 299)
    ]
    assert np.array(alone).tobytes() == together[[0, 7, 299]].tobytes()


def picture_folder(folder: Path) -> Path:
    """Pictures of two classes that an import has to change in every way it knows."""
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    colour, grey = make_images(1, (20, 30, 3))[0], make_images(1, (8, 6))[0]
    Image.fromarray(make_images(1)[0]).save(folder / "cat" / "same.png")
    Image.fromarray(colour).save(folder / "cat" / "turned.JPG", exif=exif)
    Image.fromarray(make_images(1, (8, 6, 4))[0]).save(folder / "cat" / "alpha.png")
    Image.fromarray(make_images(1, (400, 300, 3))[0]).save(folder / "cat" / "large.jpeg")
    Image.fromarray(grey).save(folder / "dog" / "grey.png")
    Image.fromarray(colour).convert("CMYK").save(folder / "dog" / "cmyk.jpg")
    Image.fromarray(np.uint16(make_images(1, (8, 6), seed=1)[0]) * 257 + 100).save(folder / "dog" / "deep.png")
    Image.fromarray(colour).convert("P").save(folder / "dog" / "palette.png")
    return folder


def test_an_imported_and_a_scored_picture_have_the_same_pixels(ask: Score, tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures")
    other = tmp_path / "importing"
    other.mkdir()
    (other / "params.yaml").touch()
    import_data(Project(other, other / ".assay"), "image-folder", folder, size=(8, 6))
    report = ask(folder)
    scored = pq.read_table(report.path)
    imported = pq.read_table(ask(other / "data", force=True).path)
    assert scored["path"].to_pylist() == imported["path"].to_pylist()
    assert scored["probabilities"].to_pylist() == imported["probabilities"].to_pylist()
    assert len(set(map(tuple, scored["probabilities"].to_pylist()))) == 8
    assert report.notes == (
        "Resized 4 images to 8x6 (height x width, bicubic), as an import does.",
        "Gave 2 images of grey three equal channels, since the model takes colour.",
        "Turned 1 image upright as their EXIF orientation says.",
        "Laid 1 image with transparency over white.",
        "Rounded 1 image from 16 to 8 bits.",
        "Converted 1 image from CMYK without a colour profile.",
    )


@pytest.mark.parametrize(("model", "found"), [("1", (8, 6, 3)), ("2", (8, 6, 1)), ("2", (8, 6))])
def test_arrays_change_between_grey_and_colour_as_files_do(
    ask: Score, tmp_path: Path, model: str, found: tuple[int, ...]
) -> None:
    images = make_images(5, found)
    (tmp_path / "files").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(tmp_path / "files" / f"{number}.png")
    by_file = ask(tmp_path / "files", model=model)
    expected = probabilities(by_file)
    by_array = ask(save(tmp_path / "array.npy", images), model=model, force=True)
    assert probabilities(by_array).tobytes() == expected.tobytes()
    assert len(by_array.notes) == 1
    assert by_array.notes == by_file.notes
    assert "5 images" in by_array.notes[0]


def as_npz(path: Path, images: np.ndarray) -> Path:
    np.savez_compressed(path, images=images, labels=np.zeros(len(images)))
    return path


def test_the_hash_is_that_of_the_bytes_in_order(ask: Score, tmp_path: Path) -> None:
    images = make_images(9)
    sources = [save(tmp_path / "a.npy", images), as_npz(tmp_path / "a.npz", images)]
    sources += [*write_data(tmp_path / "data", images).iterdir(), *(picture_folder(tmp_path / "p") / "cat").iterdir()]
    for source in sources:
        assert ask(source, force=True).data_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    files = sorted((tmp_path / "p").rglob("*.*"))
    expected = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert ask(tmp_path / "p", force=True).data_sha256 == expected


def test_the_same_input_gives_the_same_bytes_and_says_what_they_are(
    project: Project, ask: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_GROUP_ROWS", (40, 40))
    source = save(tmp_path / "a.npy", make_images(130))
    written = {Path(ask(source, batch_size=size, force=True).path).read_bytes() for size in (256, 64, 33)}
    assert len(written) == 1
    file = pq.ParquetFile(io.BytesIO(written.pop()))
    assert [file.metadata.row_group(group).num_rows for group in range(4)] == [40, 40, 40, 10]
    metadata = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
    ref = find_version(Tracker.open(project, "unit"), None, "pets")
    assert metadata == {
        "assay.model.name": "pets",
        "assay.model.version": "2",
        "assay.manifest.sha256": ref.manifest_sha256,
        "assay.data.sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "assay.class_names": json.dumps(NAMES, ensure_ascii=False),
        "assay.compute": "cpu fp32 x1",
        "assay.num_skipped": "0",
        "assay.version": "0.1.0",
    }
    table = file.read()
    assert table.column_names == [
        "row", "prediction", "probability", "probabilities", "model_name", "model_version",
    ]  # fmt: skip
    assert table["row"].to_pylist() == list(range(130))
    assert (set(table["model_name"].to_pylist()), set(table["model_version"].to_pylist())) == ({"pets"}, {2})


def test_a_folder_is_read_in_the_order_of_its_sorted_names(ask: Score, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    names = ["a/b.png", "a-b.png", "a.png", "a/b/c.jpg", "a0.png", "Z/9.png", "ä.png", "a/b-c.PNG"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_images(1, seed=number)[0]).save(folder / name)
    (folder / "a" / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_bytes(b"x")
    report = ask(folder)
    assert pq.read_table(report.path)["path"].to_pylist() == sorted(names)
    assert report.notes == ("Left out 1 x file that is no JPEG or PNG (.txt).", "Left out 1 x hidden file or folder.")


def test_what_cannot_be_decoded_is_named_or_skipped_and_listed(ask: Score, tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures")
    (folder / "cat" / "[bad].png").write_bytes(b"x")
    (folder / "dog" / "gone.jpg").symlink_to("nowhere")
    with pytest.raises(BadExampleError, match=r"cat/\[bad\]\.png: is no JPEG or PNG image\. .*--skip-bad"):
        ask(folder)
    report = ask(folder, skip_bad=True)
    assert (report.num_examples, report.num_skipped) == (8, 2)
    assert [text.partition(":")[0] for text in report.skipped] == ["cat/[bad].png", "dog/gone.jpg"]
    assert pq.read_schema(report.path).metadata[b"assay.num_skipped"] == b"2"
    (tmp_path / "only.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of its 1 images can be read"):
        ask(tmp_path / "only.png", skip_bad=True, force=True)


def test_a_shard_row_without_an_image_of_the_right_size_is_bad(ask: Score, tmp_path: Path) -> None:
    images = [
        encode_png(make_images(1)[0]),
        None,
        encode_png(make_images(1, (9, 6, 3))[0]),
        encode_png(make_images(1)[0]),
    ]
    kind = pa.struct([("bytes", pa.binary())])
    pq.write_table(pa.table({"image": pa.array([{"bytes": image} for image in images], kind)}), tmp_path / "x.parquet")
    with pytest.raises(BadExampleError, match=r"x\.parquet, row 1: has no image bytes"):
        ask(tmp_path / "x.parquet")
    report = ask(tmp_path / "x.parquet", skip_bad=True)
    assert pq.read_table(report.path)["row"].to_pylist() == [0, 3]
    assert "row 2: is 9x6 pixels" in report.skipped[1]


REFUSED = {
    "missing.npy": (None, "does not exist"),
    "text.txt": (lambda path: path.write_text("x"), "is a file of texts, and pets version 2 takes images"),
    "empty": (Path.mkdir, "holds no JPEG or PNG image"),
    "float.npy": (lambda path: np.save(path, np.zeros((2, 8, 6, 3))), "float64 of shape"),
    "none.npy": (lambda path: np.save(path, make_images(0)), "holds no images"),
    "size.npy": (lambda path: np.save(path, make_images(2, (6, 8, 3))), r"the model takes \[n, 8, 6, 3\]"),
    "channels.npy": (lambda path: np.save(path, make_images(2, (8, 6, 2))), r"the model takes \[n, 8, 6, 3\]"),
    "first.npy": (lambda path: np.save(path, make_images(2, (3, 8, 6))), r"transpose\(0, 2, 3, 1\)"),
    "fortran.npy": (lambda path: np.save(path, np.asfortranarray(make_images(2))), "column by column"),
    "pickled.npy": (lambda path: np.save(path, np.array([{}], object)), "object of shape"),
    "cut.npy": (lambda path: path.write_bytes(npy_bytes(make_images(300))[:-9]), "breaks off"),
    "noise.npy": (lambda path: path.write_bytes(b"x" * 99), "cannot be read as an array"),
    "noise.npz": (lambda path: path.write_bytes(b"x" * 99), "cannot be read as an array"),
    "two.npz": (lambda path: np.savez(path, a=make_images(1), b=make_images(1)), "none is called images"),
    "noise.parquet": (lambda path: path.write_bytes(b"x" * 99), "cannot be read as Parquet"),
    "text.parquet": (lambda path: pq.write_table(pa.table({"text": ["x"]}), path), "column image is missing"),
    "rows.parquet": (lambda path: pq.write_table(pa.table({"image": pa.array([], IMAGE)}), path), "holds no rows"),
}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def npy_bytes(images: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, images)
    return buffer.getvalue()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scored_is_refused_and_nothing_is_left(ask: Score, tmp_path: Path, name: str) -> None:
    make, message = REFUSED[name]
    if make is not None:
        make(tmp_path / name)
    with pytest.raises(DataError, match=message) as raised:
        ask(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_of_images_and_shards_is_refused(ask: Score, tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", make_images(2))
    Image.fromarray(make_images(1)[0]).save(folder / "a.png")
    with pytest.raises(DataError, match="both images and"):
        ask(folder)


def test_a_flipped_bit_in_a_compressed_array_is_seen(ask: Score, tmp_path: Path) -> None:
    content = bytearray(as_npz(tmp_path / "a.npz", make_images(50)).read_bytes())
    content[2000] ^= 16
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as an array"):
        ask(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "pets/2"),
        ("1", "pets/1"),
        ("pets@2", "pets/2"),
        ("pets@old", "pets/1"),
        ("old", "pets/1"),
        ("other@1", "other/1"),
    ],
)
def test_a_version_is_found_by_number_name_and_alias(project: Project, text: str | None, found: str) -> None:
    assert find_version(Tracker.open(project, "unit"), text, "pets").uri == f"models:/{found}"


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("9", ModelFileError, r"models:/pets/9: not registered\. Versions of pets: 2, 1"),
        ("other@champion", ModelFileError, r"no version of other is the champion yet.*promote 1.*--model 1"),
        ("nothing@1", ModelFileError, r"models:/nothing: not registered.*assay run"),
        ("chapmion", ModelFileError, r"no version of pets is the chapmion yet"),
        ("pets@", ParamsError, r"is no version\. Write 3, champion, pets@3 or pets@champion"),
        ("@3", ParamsError, "is no version"),
        ("", ParamsError, "is no version"),
    ],
)
def test_an_unknown_version_is_explained(project: Project, text: str, kind: type[AssayError], message: str) -> None:
    with pytest.raises(kind, match=message):
        find_version(Tracker.open(project, "unit"), text, "pets")


def test_a_project_without_runs_has_no_store_made_for_the_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    source = save(tmp_path / "a.npy", make_images(1))
    (tmp_path / "params.yaml").touch()
    with pytest.raises(ModelFileError, match="assay run"):
        predict(Project(tmp_path, tmp_path / ".assay"), Params(), source)
    assert not (tmp_path / ".assay").exists()


def test_an_output_is_not_written_over_or_into_the_input(ask: Score, tmp_path: Path) -> None:
    source = save(tmp_path / "a.npy", make_images(3))
    folder = picture_folder(tmp_path / "pictures")
    there = tmp_path / "there.parquet"
    there.write_text("precious")
    for out, message in {
        there: "is there already.*--force",
        source: "lies in the input",
        tmp_path / "out": "is a folder",
        tmp_path / "no" / "p.parquet": "there is no folder",
    }.items():
        with pytest.raises(StorageError, match=message):
            ask(source, out=out, force=out == source)
    with pytest.raises(StorageError, match="lies in the input"):
        ask(folder, out=folder / "cat" / "p.parquet")
    assert there.read_text() == "precious"
    ask(source, out=there, force=True)
    assert pq.read_table(there).num_rows == 3


def test_without_a_name_the_output_is_found_by_model_and_data(project: Project, ask: Score, tmp_path: Path) -> None:
    report = ask(save(tmp_path / "a b.npy", make_images(3)), out=None)
    path = Path(report.path)
    assert path == project.home / "predictions" / "pets-2" / f"a b-{report.data_sha256[:12]}.parquet"
    assert ask(tmp_path / "a b.npy", out=None).path == report.path
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_said_and_leaves_what_was_there(
    project: Project, ask: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_GROUP_ROWS", (100, 100))
    source, out = save(tmp_path / "a.npy", make_images(1000)), tmp_path / "out" / "predictions.parquet"
    out.write_text("precious")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match=r"File too large.*Free some disk space"):
            ask(source, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_input_that_breaks_off_late_leaves_no_file_and_nothing_that_writes_later(
    ask: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_GROUP_ROWS", (100, 100))
    (tmp_path / "a.npy").write_bytes(npy_bytes(make_images(1000))[:-1])
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with contextlib.suppress(DataError):
        ask(tmp_path / "a.npy")
    gc.collect()
    assert unraisable == []
    assert list((tmp_path / "out").iterdir()) == []


class Counting(nn.Module):
    """Logits are the mean pixel and its negative; a mean of 255 is no number."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([mean, -mean], dim=1).where(mean[:, None] != 255, torch.nan)


def test_a_logit_that_is_no_number_names_the_picture_and_padding_does_not_count() -> None:
    images = np.full((4, 2, 2, 1), 255, np.uint8)
    images[:2] = 3
    kept = []
    score(Counting(), iter([InputBatch(images, [0, 1], [None, None])]), CPU, lambda batch, found: kept.append(found))
    assert kept[0].shape == (2, 2)
    for batch, name in (
        (InputBatch(images, [5, 6, 7], [None] * 3), "row 7"),
        (InputBatch(images, [0, 1, 2], ["a.png", "b.png", "c.png"]), r"c\.png"),
    ):
        with pytest.raises(NonFiniteError, match=f"{name}: the model's logits are"):
            score(Counting(), iter([batch]), CPU, lambda *_: None)


def test_one_batch_is_read_ahead_and_no_more(ask: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, kept, ahead = [0], [0], []

    class Slow(answers.AnswerFile):
        def add(self, batch: InputBatch, probabilities: np.ndarray) -> None:
            kept[0] += 1
            ahead.append(read[0] - kept[0])
            super().add(batch, probabilities)

    def counting(
        content: np.ndarray, wanted: object, convert: Callable[..., np.ndarray] = array_files._convert
    ) -> np.ndarray:
        read[0] += 1
        return convert(content, wanted)

    monkeypatch.setattr("assay.predict.AnswerFile", Slow)
    monkeypatch.setattr(array_files, "_convert", counting)
    ask(save(tmp_path / "a.npy", make_images(640)), batch_size=32)
    assert (read[0], kept[0]) == (20, 20)
    assert max(ahead) == 1


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    peaks = []
    for count in (20_000, 200_000):
        path = tmp_path / f"{count}.npy"
        with path.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, 28, 28, 1)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + count * 784)
        tracemalloc.start()
        try:
            inputs = open_inputs(path, Wanted("pets", "image", (28, 28, 1)))
            assert sum(map(len, inputs.read(256, False, Tally()))) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert max(peaks) < 2e6
    assert peaks[1] < 1.1 * peaks[0]
