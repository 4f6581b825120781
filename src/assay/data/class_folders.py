"""One folder a class, with ``train/ test/ val/`` above or not: which files lie there, of which class and split."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from assay.errors import SourceError

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_HIDDEN = (".", "__MACOSX")


@dataclass(frozen=True)
class ClassFile:
    """One file found: its place on disk, its name within the folder, its label, split and size in bytes."""

    path: str
    name: str
    label: int
    split: str | None
    size_bytes: int


@dataclass
class Listing:
    """What lies in a folder.

    Attributes:
        files: Files of the wanted kind, sorted by name.
        class_names: Class names in label order.
        num_hidden: Hidden files and folders passed over.
        others: Other files passed over, by reason.
    """

    files: list[ClassFile] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    num_hidden: int = 0
    others: Counter[str] = field(default_factory=Counter)

    @property
    def notes(self) -> list[str]:
        """Sentences about what was passed over."""
        notes = [f"Left out {count} x {reason}." for reason, count in sorted(self.others.items())]
        return [*notes, f"Left out {self.num_hidden} x hidden file or folder."] if self.num_hidden else notes


def list_class_folders(folder: Path, suffixes: tuple[str, ...], what: str, form: str) -> Listing:
    """List files by class.

    Args:
        folder: ``CLASS/*`` or ``train|val|test/CLASS/*``.
        suffixes: Suffixes of the files that are wanted, in lower case.
        what: What such a file is, e.g. ``text``.
        form: What it is called by its form, e.g. ``JPEG or PNG``.

    Raises:
        SourceError: The folder is missing, of one class, or its layout is unclear; or a class has no such file.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise SourceError(f"{folder}: {found}. Name a folder with one folder of {what}s a class.")
    listing = Listing()
    top = _visible_folders(folder, listing)
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in top if name.lower() in SPLIT_FOLDERS}
    roots: dict[str | None, Path] = {None: folder}
    if "train" in splits.values() and len(set(splits.values())) == len(top):
        roots = {split: folder / name for name, split in splits.items()}
    elif len(set(splits.values())) > 1:
        raise SourceError(_unclear_layout(folder, top, splits))
    classes = {split: top if split is None else _visible_folders(root, listing) for split, root in roots.items()}
    listing.class_names = _class_names(folder, classes, what)
    for split, names in classes.items():
        for name in names:
            label = listing.class_names.index(name)
            num_before = len(listing.files)
            _list_class(roots[split] / name, folder, label, split, suffixes, form, listing)
            if len(listing.files) == num_before:
                raise SourceError(f"{roots[split] / name}: holds no {form} {what}. Add some, or remove the folder.")
    listing.files.sort(key=lambda file: file.name)
    return listing


def _visible_folders(folder: Path, listing: Listing) -> list[str]:
    """Names of the subfolders; loose files are counted and left out."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_HIDDEN):
                listing.num_hidden += 1
            elif entry.is_dir():
                names.append(entry.name)
            else:
                listing.others[f"file outside any class folder, in {folder}"] += 1
    return sorted(names)


def _unclear_layout(folder: Path, top: list[str], splits: dict[str, str]) -> str:
    named = ", ".join(splits)
    if beside := sorted(set(top) - set(splits)):
        return (
            f"{folder}: the splits {named} lie beside other folders ({', '.join(beside[:3])}), so it is unclear "
            "what a class is. Leave either the splits or the classes there."
        )
    reason = "there is no train" if "train" not in splits.values() else "two of them are the same split"
    return f"{folder}: holds {named}, and {reason}. Name the folders train, val and test."


def _class_names(folder: Path, classes: dict[str | None, list[str]], what: str) -> tuple[str, ...]:
    """Class names in label order: by number where all are numbers, by name otherwise."""
    names = classes.get(None) or classes.get("train") or []
    for split, others in classes.items():
        for name in sorted(set(others) - set(names)):
            raise SourceError(
                f"{folder}: class {name!r} is in {split} and not in train. Add examples to train or remove it."
            )
    if len(names) < 2:
        found = f"only one class folder, {names[0]!r}" if names else "no class folders"
        raise SourceError(f"{folder}: holds {found}. Put the {what}s of each class into a folder of its own.")
    for name in names:
        if not name.isprintable() or any(0xD800 <= ord(letter) <= 0xDFFF for letter in name):
            raise SourceError(f"{folder}: the class folder {name!r} has letters that cannot be stored. Rename it.")
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _list_class(
    folder: Path,
    root: Path,
    label: int,
    split: str | None,
    suffixes: tuple[str, ...],
    form: str,
    listing: Listing,
) -> None:
    """Add the wanted files below one class folder."""
    for place, folders, names in os.walk(folder):
        listing.num_hidden += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        for name in (name for name in names if not name.startswith(".")):
            path, suffix = os.path.join(place, name), os.path.splitext(name)[1].lower()
            if suffix in suffixes and (os.path.isfile(path) or not os.path.exists(path)):
                shown = os.fsencode(os.path.relpath(path, root)).decode("utf-8", "backslashreplace")
                size_bytes = os.path.getsize(path) if os.path.exists(path) else 0
                listing.files.append(ClassFile(path, shown.replace(os.sep, "/"), label, split, size_bytes))
            else:
                listing.others[f"file that is no {form} ({suffix or 'no suffix'})"] += 1
