"""Text files in a stream: which encoding they are in, and their lines, with the place of what cannot be decoded."""

import codecs
import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from assay.errors import DataError, SourceError

MAX_CELL_BYTES = 16 * 2**20
"""A cell, or a line, larger than this is not read into memory."""

_BLOCK_BYTES = 2**20
_PROBE_BYTES = 2**16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass
class LineReader:
    """Reads the lines of a text file.

    Attributes:
        path: The file.
        encoding: Its encoding, from `find_encoding`.
        num_nuls: NUL characters removed; counted while reading.
    """

    path: Path
    encoding: str
    num_nuls: int = 0

    def lines(self) -> Iterator[str]:
        r"""Read lines with their ends (``\n``, ``\r\n`` or ``\r``), without NUL characters.

        A line that is too long is yielded as its beginning, longer than `MAX_CELL_BYTES` characters, and nothing
        after it: whoever reads knows what to call it.

        Raises:
            DataError: The file cannot be decoded or read; byte offset and line are named.
        """
        self.num_nuls, rest = 0, ""
        for block in self._decoded():
            if "\0" in block:
                self.num_nuls += block.count("\0")
                block = block.replace("\0", "")
            rest += block
            *complete, rest = io.StringIO(rest, newline="") if rest else [""]
            yield from complete
            if len(rest) > MAX_CELL_BYTES:
                yield rest
                return
            if rest.endswith("\n"):
                yield rest
                rest = ""
        if rest:
            yield rest

    def _decoded(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder(self.encoding)("strict")
        num_bytes, num_lines, held = 0, 1, 0
        try:
            with open(self.path, "rb") as file:
                while True:
                    block = file.read(_BLOCK_BYTES)
                    held = len(decoder.getstate()[0])
                    text = decoder.decode(block, final=not block)
                    num_bytes += len(block)
                    num_lines += text.count("\n")
                    yield text
                    if not block:
                        return
        except UnicodeDecodeError as error:
            offset = num_bytes - held + error.start
            line = num_lines + error.object[: error.start].count(b"\n")
            raise DataError(self._undecodable(error, offset, line)) from error
        except UnicodeError as error:
            raise DataError(f"{self.path}: is not {self.encoding.upper()} ({error}). Name its encoding.") from error
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be read ({error.strerror}). Check the file.") from error

    def _undecodable(self, error: UnicodeDecodeError, offset: int, line: int) -> str:
        found = error.object[error.start : error.start + 1].hex()
        where = f"byte offset {offset}" + (f", line {line}" if self.encoding.startswith("utf-8") else "")
        name = self.encoding.removesuffix("-sig").upper()
        return (
            f"{self.path}: {where}: byte 0x{found} is not {name}. Say which encoding it is in (option encoding, e.g. "
            f"windows-1252), or convert it: iconv -f WINDOWS-1252 -t UTF-8 {self.path.name} > new_{self.path.name}"
        )


def find_encoding(path: Path, given: str | None) -> str:
    """Say which encoding a file is read in.

    Args:
        path: The file.
        given: What a person says, or None: UTF-8, or UTF-16 or UTF-32 where a byte order mark says so.

    Returns:
        Name of a codec.

    Raises:
        SourceError: The file is missing or empty, or there is no such encoding.
        DataError: It is no text, or UTF-16 without a byte order mark.
    """
    try:
        if not path.is_file():
            raise SourceError(f"{path}: {'is a folder' if path.is_dir() else 'does not exist'}. Name a file.")
        with open(path, "rb") as file:
            start = file.read(_PROBE_BYTES)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}). Check the file.") from error
    if not start:
        raise SourceError(f"{path}: is empty (0 bytes). Was it written to its end?")
    if given is not None:
        return _known_encoding(given)
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    for signature, what in ((b"PK\x03\x04", "a zip or Excel file"), (b"\x1f\x8b", "gzip"), (b"PAR1", "Parquet")):
        if start.startswith(signature):
            raise DataError(f"{path}: is {what}, not text. Unpack or export it, or give the file its right suffix.")
    if start.count(0) > len(start) // 10:
        raise DataError(
            f"{path}: {start.count(0)} of its first {len(start)} bytes are NUL, so it is no UTF-8. If it is UTF-16 "
            "without a byte order mark, say so: option encoding, utf-16-le or utf-16-be."
        )
    return "utf-8"


def _known_encoding(given: str) -> str:
    try:
        "".encode(given)  # Refuses what is no encoding of text, e.g. base64.
        name = codecs.lookup(given).name
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError) as error:
        raise SourceError(
            f"encoding={given}: is no encoding of text. Write e.g. utf-8, utf-16 or windows-1252."
        ) from error
    return "utf-8-sig" if name == "utf-8" else name


def clean_text(text: str) -> str:
    """Normalise a text: Unicode NFC, without byte order marks at its start and without NUL; spaces stay as they are."""
    return unicodedata.normalize("NFC", text.replace("\0", "").lstrip("\ufeff"))
