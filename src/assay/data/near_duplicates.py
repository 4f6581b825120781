"""Examples that are not equal but nearly so: texts with a few other letters, pictures saved anew.

Work and memory grow with the number of examples, not with that of their pairs: only those that share something rare,
or that sort next to each other, are compared at all.
"""

import re
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from assay.data.loading import Dataset
from assay.records import IMAGE, TEXT, Record

MIN_JACCARD = 0.9
"""Share of the shingles of two texts, of all that either has, from which on they are nearly equal."""

MIN_CORRELATION = 0.995
MAX_DISTANCE = 12
"""Pictures are nearly equal whose difference hashes differ in at most so many of their 128 bits, and whose grey
thumbnails correlate at least so much."""

_NUM_NAMED = 5
_SHINGLE_BYTES = 8
_MAX_SHINGLES = 2**23
_HASH_BITS, _OWNER_BITS, _COUNT_BITS, _SHINGLE_BITS = 40, 24, 12, 28
_BLOCK_BYTES = 2**22
_THUMBNAIL = 16
_LEAST_STEP = 1.0
_FEW_PAIRS = 4096
_BLOCK_PIXELS = 2**22
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_NO_LETTER = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class NearDuplicates(Record):
    """Examples that nearly repeat an earlier one; those that repeat it exactly are not among them.

    Attributes:
        num_examples: How many there are.
        pairs: Row numbers of some: an earlier example and the one that nearly repeats it.
        criterion: What counts as nearly equal, in words.
    """

    num_examples: int
    pairs: tuple[tuple[int, int], ...]
    criterion: str


def find_near_duplicates(dataset: Dataset) -> NearDuplicates | None:
    """Find texts or images that nearly repeat an earlier one; None for other kinds of data.

    Args:
        dataset: The decoded examples.
    """
    _, first = np.unique(np.asarray(dataset.content_hash), return_index=True)
    rows = np.sort(first)
    if dataset.ref.kind == TEXT:
        pairs = near_texts(dataset.texts(rows))
        criterion = (
            "equal but for case, space and punctuation, or "
            f"{MIN_JACCARD:.0%} of their shingles of {_SHINGLE_BYTES} bytes in common"
        )
    elif dataset.ref.kind == IMAGE:
        pairs = near_images(dataset.images, rows)
        criterion = (
            f"difference hashes of 128 bits at most {MAX_DISTANCE} bits apart, and grey thumbnails that correlate by "
            f"{MIN_CORRELATION} or more"
        )
    else:
        return None
    later, place = np.unique(pairs[:, 1], return_index=True)
    spread = np.linspace(0, len(later) - 1, min(_NUM_NAMED, len(later))).round().astype(int)
    named = rows[pairs[place[spread]]].tolist()
    return NearDuplicates(len(later), tuple((int(one), int(other)) for one, other in named), criterion)


def near_texts(texts: list[str]) -> np.ndarray:
    """Find texts that nearly repeat an earlier one.

    Two texts are nearly equal if folding case, white space and punctuation makes them equal, or if their sets of
    shingles (all runs of 8 bytes of the folded text) have a Jaccard index of `MIN_JACCARD` or more. Such sets share
    one of each one's rarest shingles, so only texts that do are compared, and of many with the same shingle only
    those of about the same length. Above 8 million shingles a sample of them stands for all.

    Args:
        texts: Texts, no two the same.

    Returns:
        Positions in `texts`, int64 ``[pair, 2]``, the earlier one first; no pair twice.

    Source:
        Chaudhuri, Ganti and Kaushik, "A primitive operator for similarity joins in data cleaning", ICDE 2006 (the
        prefix filter). Broder, "On the resemblance and containment of documents", SEQUENCES 1997 (shingles).
    """
    first_of: dict[bytes, int] = {}
    folded_pairs: list[tuple[int, int]] = []
    for place, text in enumerate(texts):
        key = fold(text).encode()
        if (first := first_of.setdefault(key, place)) != place:
            folded_pairs.append((first, place))
    keys, places = list(first_of), np.fromiter(first_of.values(), np.int64, len(first_of))
    assert keys and len(keys) < 2**_OWNER_BITS
    similar = places[_similar_sets(*_shingles(keys), len(keys))]
    pairs = np.concatenate([np.array(folded_pairs, np.int64).reshape(-1, 2), np.sort(similar, axis=1)])
    return np.unique(pairs, axis=0)


def fold(text: str) -> str:
    """Leave the letters and digits of a text, in lower case; a text that has none stays as it is."""
    return _NO_LETTER.sub("", text.casefold()) or text


def _shingles(keys: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Shingles as hashes of 40 bits and the texts that they are of, uint64 ``[shingle]`` both."""
    widths = np.maximum([len(key) for key in keys], _SHINGLE_BYTES)
    ends = np.cumsum(widths)
    num_all = int((widths - _SHINGLE_BYTES + 1).sum())
    highest = 2**_HASH_BITS if num_all <= _MAX_SHINGLES else 2**_HASH_BITS * _MAX_SHINGLES // num_all
    cuts = np.searchsorted(ends, np.arange(_BLOCK_BYTES, int(ends[-1]), _BLOCK_BYTES))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start, stop in zip([0, *cuts], [*cuts, len(keys)], strict=True):
        block = b"".join(key.ljust(_SHINGLE_BYTES, b"\0") for key in keys[start:stop])
        values = np.frombuffer(block, np.uint8).astype(np.uint64)
        for step in (1, 2, 4):  # Bytes become pairs, pairs become fours, fours become eights.
            values = values[:-step] | (values[step:] << np.uint64(8 * step))
        owners = np.repeat(np.arange(start, stop, dtype=np.uint64), widths[start:stop])
        is_whole = owners[: len(values)] == owners[_SHINGLE_BYTES - 1 :]
        hashes = _mixed(values) >> np.uint64(64 - _HASH_BITS)
        kept = is_whole & (hashes < np.uint64(highest))
        found.append((hashes[kept], owners[: len(values)][kept]))
    hashes, owners = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return hashes, owners


def _mixed(values: np.ndarray) -> np.ndarray:
    """Scatter uint64 values over all 64 bits, one to one."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return np.asarray(values ^ (values >> np.uint64(31)))


def _similar_sets(hashes: np.ndarray, owners: np.ndarray, num_sets: int) -> np.ndarray:
    """Pairs of sets whose Jaccard index is high enough, int64 ``[pair, 2]``.

    Sorting whole numbers that hold hash and owner, or owner, count and shingle, is many times faster than sorting by
    several arrays.
    """
    packed = _distinct((hashes << np.uint64(_OWNER_BITS)) | owners)
    owners = packed & np.uint64(2**_OWNER_BITS - 1)
    is_first = np.r_[True, np.diff(packed >> np.uint64(_OWNER_BITS)) != 0]
    shingles = np.cumsum(is_first) - 1
    counts = np.minimum(np.diff(np.r_[np.flatnonzero(is_first), len(packed)]), 2**_COUNT_BITS - 1)[shingles]
    packed = np.sort(
        (owners << np.uint64(_COUNT_BITS + _SHINGLE_BITS))
        | (counts.astype(np.uint64) << np.uint64(_SHINGLE_BITS))
        | shingles.astype(np.uint64)
    )
    owner = (packed >> np.uint64(_COUNT_BITS + _SHINGLE_BITS)).astype(np.int64)
    count = (packed >> np.uint64(_SHINGLE_BITS)) & np.uint64(2**_COUNT_BITS - 1)
    shingle = (packed & np.uint64(2**_SHINGLE_BITS - 1)).astype(np.int64)
    sizes = np.bincount(owner, minlength=num_sets)
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(owner)) - starts[owner]
    chosen = (rank <= sizes[owner] - np.ceil(MIN_JACCARD * sizes[owner] - 1e-9)) & (count > 1)
    order = np.lexsort((owner[chosen], sizes[owner[chosen]], shingle[chosen]))
    pairs = _neighbours(shingle[chosen][order], owner[chosen][order], 8)
    small, large = np.sort(sizes[pairs], axis=1).T
    pairs = pairs[small >= MIN_JACCARD * large]
    sets = sparse.csr_array((np.ones(len(owner), np.int32), shingle, np.r_[starts, len(owner)]))
    kept = [np.empty(0, bool)]
    for start in range(0, len(pairs), _FEW_PAIRS):
        one, other = pairs[start : start + _FEW_PAIRS].T
        shared = np.asarray(sets[one].multiply(sets[other]).sum(axis=1)).ravel()
        kept.append(shared >= MIN_JACCARD * (sizes[one] + sizes[other] - shared))
    return np.asarray(pairs[np.concatenate(kept)])


def _distinct(values: np.ndarray) -> np.ndarray:
    """Sort and leave each value once."""
    values = np.sort(values)
    return np.asarray(values[np.r_[True, values[1:] != values[:-1]]])


def _neighbours(group: np.ndarray, members: np.ndarray, reach: int) -> np.ndarray:
    """Pair each member with the next few of its group, int64 ``[pair, 2]``, lower number first, no pair twice."""
    found = [np.empty((0, 2), np.int64)]
    for step in range(1, reach + 1):
        together = group[:-step] == group[step:]
        found.append(np.stack([members[:-step][together], members[step:][together]], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    codes = _distinct(pairs[:, 0] * (2**32) + pairs[:, 1]) if len(pairs) else np.empty(0, np.int64)
    return np.stack([codes >> 32, codes & (2**32 - 1)], axis=1)


def near_images(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Find images that nearly repeat an earlier one.

    The difference hash of an image says of neighbours in a grey thumbnail of 9 x 9 pixels which is the brighter one,
    across and down. Each image is compared with the few next to it in four orders of the hashes, which begin at a
    quarter of the bits each; the grey thumbnails of 16 x 16 pixels have the last word, as figures on an even ground
    have much the same hash.

    Args:
        images: uint8 ``[example, height, width, channel]``; may be memory-mapped.
        rows: Which ones, int64 ``[row]``, no two the same, ascending.

    Returns:
        Positions in `rows`, int64 ``[pair, 2]``, the earlier one first; no pair twice.
    """
    hashes, thumbnails = _look_at(images, rows)
    quarters, halves = hashes.view(">u4"), hashes.view(np.uint64)
    found = [np.empty((0, 2), np.int64)]
    for turn in range(4):
        order = np.lexsort(np.roll(quarters, -turn, axis=1).T[::-1])
        pairs = _neighbours(np.zeros(len(order), np.int8), order, 32)
        distance = np.bitwise_count(halves[pairs[:, 0]] ^ halves[pairs[:, 1]]).sum(axis=1)
        pairs = pairs[distance <= MAX_DISTANCE]
        for start in range(0, len(pairs), _FEW_PAIRS):
            part = pairs[start : start + _FEW_PAIRS]
            correlation = (thumbnails[part[:, 0]] * thumbnails[part[:, 1]]).sum(axis=1)
            found.append(part[correlation >= MIN_CORRELATION])
    return np.unique(np.concatenate(found), axis=0)


def _look_at(images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes, uint8 ``[row, byte]``, and grey thumbnails of mean 0 and length 1, float32 ``[row, pixel]``."""
    hashes = np.empty((len(rows), 16), np.uint8)
    thumbnails = np.empty((len(rows), _THUMBNAIL**2), np.float32)
    block = max(1, _BLOCK_PIXELS // int(np.prod(images.shape[1:])))
    for start in range(0, len(rows), block):
        place = slice(start, start + block)
        grey = images[rows[place]].mean(axis=3, dtype=np.float32)
        coarse = _shrunk(grey, 9)
        across, down = (np.diff(coarse, axis=axis)[:, :8, :8] > _LEAST_STEP for axis in (2, 1))
        hashes[place] = np.packbits(np.concatenate([across, down], axis=1).reshape(len(grey), -1), axis=1)
        flat = _shrunk(grey, _THUMBNAIL).reshape(len(grey), -1)
        flat -= flat.mean(axis=1, keepdims=True)
        length = np.linalg.norm(flat, axis=1, keepdims=True)
        thumbnails[place] = np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-3)
    return hashes, thumbnails


def _shrunk(grey: np.ndarray, side: int) -> np.ndarray:
    """Bring ``[row, height, width]`` to `side` pixels a side, each the mean of the pixels that it covers."""
    for axis in (1, 2):
        size = grey.shape[axis]
        edges = np.linspace(0, size, side + 1)
        places = np.arange(size)
        covered = np.clip(np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places), 0, None)
        weights = (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)
        grey = np.moveaxis(np.tensordot(grey, weights, axes=(axis, 1)), -1, axis)
    return grey
