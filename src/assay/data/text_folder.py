"""The ``text-folder`` source: one folder a class of ``.txt`` files, with ``train/ test/ val/`` above or not."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from assay.data.class_folders import ClassFile, Listing, list_class_folders
from assay.data.sources import Example, Source, content_hash
from assay.data.text_lines import MAX_CELL_BYTES, clean_text, find_encoding
from assay.errors import BadExampleError, DataError, SourceError
from assay.progress import announce
from assay.records import TEXT

TEXT_SUFFIXES = (".txt",)


def open_text_folder(folder: Path, *, encoding: str | None = None, skip_bad: bool = False) -> Source:
    """Open a folder of texts.

    Args:
        folder: ``CLASS/*.txt`` or ``train|val|test/CLASS/*.txt``.
        encoding: Of all files; by default UTF-8, or UTF-16 with a byte order mark.
        skip_bad: Leave out files that are empty, too large or cannot be decoded.

    Raises:
        SourceError: The folder is missing, empty, of one class, or its layout is unclear.
    """
    listing = list_class_folders(folder, TEXT_SUFFIXES, "text", ".txt")
    details = {"folder": folder.resolve().name}
    details |= {"encoding": encoding} if encoding else {}
    details |= {"skip_bad": "yes"} if skip_bad else {}
    bad: list[str] = []
    return Source(
        name="text-folder",
        details=details,
        class_names=listing.class_names,
        shape=(max(1, max(file.size_bytes for file in listing.files)),),
        num_examples=len(listing.files),
        size_bytes=sum(2 * file.size_bytes + 64 for file in listing.files),
        has_splits=any(file.split for file in listing.files),
        examples=lambda: _read_all(listing, encoding, skip_bad, bad),
        kind=TEXT,
        notes=listing.notes,
        bad_examples=bad,
    )


def _read_all(listing: Listing, encoding: str | None, skip_bad: bool, bad: list[str]) -> Iterator[Example]:
    bad.clear()
    for done, file in enumerate(listing.files, 1):
        try:
            text = read_text(file, encoding)
        except BadExampleError as error:
            if not skip_bad:
                raise BadExampleError(
                    f"{error}. Mend or remove the file, or leave such files out with --skip-bad."
                ) from error
            bad.append(str(error))
        else:
            yield Example(file.name, text, file.label, file.split, content_hash(text))
        announce("import", "reading texts", done=done, total=len(listing.files))
    if len(bad) == len(listing.files):
        raise SourceError(f"None of the {len(bad)} texts can be read. The first: {bad[0]}.")


def read_text(file: ClassFile, encoding: str | None) -> str:
    """Read one text.

    Raises:
        BadExampleError: It is empty, too large, or cannot be read or decoded.
    """
    if file.size_bytes > MAX_CELL_BYTES:
        raise BadExampleError(f"{file.name}: has {file.size_bytes:,} bytes, more than {MAX_CELL_BYTES:,}")
    try:
        found = find_encoding(Path(file.path), encoding) if file.size_bytes else "utf-8"
        data = Path(file.path).read_bytes()
        text = clean_text(codecs.decode(data, found))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadExampleError(
            f"{file.name}: byte offset {error.start}, line {line}: byte 0x{data[error.start]:02x} is not "
            f"{found.removesuffix('-sig').upper()}; say which encoding it is in (option encoding), or convert it: "
            "iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    except UnicodeError as error:
        raise BadExampleError(f"{file.name}: is not {found.upper()} ({error})") from error
    except OSError as error:
        raise BadExampleError(f"{file.name}: cannot be read ({error.strerror})") from error
    except SourceError:
        raise
    except DataError as error:
        raise BadExampleError(f"{file.name}: {str(error).removeprefix(f'{file.path}: ').rstrip('.')}") from error
    if not text.strip():
        raise BadExampleError(f"{file.name}: {'is empty' if not data else 'holds nothing but white space'}")
    return text
