"""What can be scored: files and folders that fit the kind of data that a model takes, read in a stream.

Whatever its size, an input takes the memory of a few batches, and every byte goes into one SHA-256 in the order of
reading.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from assay.data.image_folder import IMAGE_SUFFIXES
from assay.data.input_batches import Inputs, Wanted
from assay.data.rows import JSON_LINES, PARQUET, SEPARATED
from assay.data.text_folder import TEXT_SUFFIXES
from assay.errors import DataError, ParamsError
from assay.records import IMAGE, SERIES, TABLE, TEXT

if TYPE_CHECKING:
    import pyarrow as pa

ARRAYS = (".npy", ".npz")

_TAKES = {
    IMAGE: (*IMAGE_SUFFIXES, *ARRAYS, *PARQUET),
    TEXT: (*TEXT_SUFFIXES, *SEPARATED, *JSON_LINES, *PARQUET),
    SERIES: (*ARRAYS, *PARQUET),
    TABLE: (*SEPARATED, *JSON_LINES, *PARQUET),
}
_WHAT_IT_IS = (
    (IMAGE_SUFFIXES, "an image"),
    (TEXT_SUFFIXES, "a file of texts"),
    ((*SEPARATED, *JSON_LINES), "a table"),
    (ARRAYS, "an array"),
)
_ADVICE = {
    IMAGE: "a JPEG or PNG image, a Parquet file, a .npy or .npz array, or a folder of images or shards",
    TEXT: "a .txt, .csv, .tsv, .jsonl or Parquet file, or a folder of .txt files or shards",
    SERIES: "a .npy or .npz array, a Parquet file or a folder of shards",
    TABLE: "a .csv, .tsv, .jsonl or Parquet file, or a folder of shards",
}
_FOLDERS = {IMAGE: (IMAGE_SUFFIXES, "images"), TEXT: (TEXT_SUFFIXES, "texts")}


def open_inputs(path: Path, wanted: Wanted, text_column: str | None = None) -> Inputs:
    """Find out what an input is and how much is in it.

    Args:
        path: For images: an image, a folder of images (and of folders of them), or a ``.npy`` or ``.npz`` file. For
            texts: a ``.txt`` file (each line is a text), a folder of such files (each file is one), or a csv, tsv or
            jsonl file. For series: a ``.npy`` or ``.npz`` file. For tables: a csv, tsv or jsonl file. For all of them:
            a Parquet file, or a folder of Parquet shards.
        wanted: What the model takes.
        text_column: Column of texts in a table; by default ``text`` or the only column that holds text.

    Raises:
        DataError: It is missing, empty, or nothing that the model takes.
        ParamsError: `text_column` does not go with it.
    """
    if text_column is not None and wanted.kind != TEXT:
        raise ParamsError(f"--text-column {text_column}: {wanted.takes}, not texts. Leave it out.")
    require_path(path)
    if path.is_dir():
        return _open_folder(path, wanted, text_column)
    suffix = path.suffix.lower()
    if suffix not in _TAKES[wanted.kind]:
        what = next(
            (what for suffixes, what in _WHAT_IT_IS if suffix in suffixes), "none of the files that can be scored"
        )
        raise DataError(f"{path}: is {what}, and {wanted.takes}. Name {_ADVICE[wanted.kind]}.")
    if suffix in PARQUET:
        return _open_shards(path, (path,), wanted, text_column)
    if text_column is not None and suffix in TEXT_SUFFIXES:
        raise ParamsError(f"--text-column {text_column}: {path} has no columns. Leave it out.")
    return _open_file(path, wanted, text_column)


def require_path(path: Path) -> None:
    """Make sure that there is a file or folder.

    Raises:
        DataError: There is none.
    """
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{path}: {'is no file' if path.exists() else 'does not exist'}. Name a file or a folder.")


def _open_file(path: Path, wanted: Wanted, text_column: str | None) -> Inputs:
    from assay.data import image_inputs, row_files, series_inputs, table_inputs, text_inputs

    suffix = path.suffix.lower()
    match wanted.kind:
        case "image":
            open_image = image_inputs.open_image if suffix in IMAGE_SUFFIXES else image_inputs.open_image_array
            return open_image(path, wanted)
        case "series":
            return series_inputs.open_series_array(path, wanted)
        case "text":
            if suffix in TEXT_SUFFIXES:
                return text_inputs.open_text_file(path, wanted)
            return text_inputs.open_text_rows(path, row_files.open_files((path,)), None, text_column, wanted)
        case _:
            return table_inputs.open_table_rows(path, row_files.open_files((path,)), None, wanted)


def _open_folder(folder: Path, wanted: Wanted, text_column: str | None) -> Inputs:
    from assay.data import image_inputs, text_inputs

    shards = tuple(sorted(folder.glob("*.parquet")))
    suffixes, what = _FOLDERS.get(wanted.kind, ((), ""))
    if shards and any(child.suffix.lower() in suffixes for child in folder.iterdir()):
        raise DataError(f"{folder}: holds both {what} and *.parquet files. Name one of them, or part them.")
    if shards:
        return _open_shards(folder, shards, wanted, text_column)
    if not suffixes:
        raise DataError(f"{folder}: holds no *.parquet file, and {wanted.takes}. Name {_ADVICE[wanted.kind]}.")
    if text_column is not None:
        raise ParamsError(f"--text-column {text_column}: {folder} has no columns. Leave it out.")
    opener = image_inputs.open_image_folder if wanted.kind == IMAGE else text_inputs.open_text_folder
    return opener(folder, wanted)


def _open_shards(path: Path, files: tuple[Path, ...], wanted: Wanted, text_column: str | None) -> Inputs:
    from assay.data import image_inputs, row_files, series_inputs, table_inputs, text_inputs

    schemas, num_rows = [], 0
    for file in files:
        schema, count = _read_footer(file)
        _check_kind(file, schema, wanted)
        schemas.append(schema)
        num_rows += count
    if not num_rows:
        raise DataError(f"{path}: holds no rows. Name a file or folder that holds examples.")
    match wanted.kind:
        case "image":
            return image_inputs.open_image_shards(path, files, num_rows, wanted)
        case "series":
            return series_inputs.open_series_shards(path, files, num_rows, wanted)
        case "text":
            return text_inputs.open_text_rows(path, row_files.open_files(files), num_rows, text_column, wanted)
    if all(_holds_floats(schema, wanted.columns) for schema in schemas):
        names = list(dict.fromkeys(name for schema in schemas for name in schema.names))
        return table_inputs.open_table_shards(path, files, num_rows, names, wanted)
    for file, schema in zip(files, schemas, strict=True):
        table_inputs.find_sources(file, schema.names, wanted)
    return table_inputs.open_table_rows(path, row_files.open_files(files), num_rows, wanted)


def _read_footer(path: Path) -> "tuple[pa.Schema, int]":
    """Read a footer; return the schema and the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.schema_arrow, int(file.metadata.num_rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}). Replace or remove it.") from error


def _check_kind(path: Path, schema: "pa.Schema", wanted: Wanted) -> None:
    """Refuse columns that are not what the model takes."""
    import pyarrow.types as kinds

    def type_of(name: str) -> "pa.DataType | None":
        return schema.field(name).type if name in schema.names else None

    image, series = type_of("image"), type_of("series")
    has_series = series is not None and kinds.is_list(series) and kinds.is_list(series.value_type)
    data = (
        image.field("bytes").type if image and kinds.is_struct(image) and image.get_field_index("bytes") >= 0 else None
    )
    has_images = data is not None and (kinds.is_binary(data) or kinds.is_large_binary(data))
    if wanted.kind == IMAGE and not has_images:
        raise DataError(
            f"{path}: column image is {image or 'missing'}, not struct<bytes: binary, path: string>, and "
            f"{wanted.takes}. Rewrite it so, or name another file."
        )
    if wanted.kind == SERIES and not has_series:
        raise DataError(
            f"{path}: column series is {series or 'missing'}, not list<list<float>> (steps of channels), and "
            f"{wanted.takes}. Rewrite it so, or name another file."
        )
    if wanted.kind in (TEXT, TABLE) and (has_images or has_series):
        raise DataError(
            f"{path}: holds {'images' if has_images else 'series'}, and {wanted.takes}. Name {_ADVICE[wanted.kind]}."
        )


def _holds_floats(schema: "pa.Schema", columns: tuple[str, ...]) -> bool:
    import pyarrow.types as kinds

    return all(name in schema.names and kinds.is_float32(schema.field(name).type) for name in columns)
