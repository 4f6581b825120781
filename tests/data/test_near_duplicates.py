import io

import numpy as np
import pytest
from PIL import Image

from assay.data.near_duplicates import find_near_duplicates, fold, near_images, near_texts
from tests.data.kinds import table_dataset, text_dataset
from tests.data.made import make_dataset


def sentences(rng: np.random.Generator, count: int, num_words: int = 60) -> list[str]:
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(3000)]
    return [" ".join(rng.choice(words, num_words)) for _ in range(count)]


def jaccard(one: str, other: str) -> float:
    sets = [{key[k : k + 8] for k in range(len(key) - 7)} for key in (fold(one).encode(), fold(other).encode())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def pairs_of(found: np.ndarray) -> set[tuple[int, int]]:
    return {(int(one), int(other)) for one, other in found}


def test_every_pair_is_found_that_comparing_all_finds() -> None:
    rng = np.random.default_rng(0)
    texts = sentences(rng, 60)
    for number in range(60):
        words = texts[number].split()
        for _ in range(int(rng.integers(1, 6))):
            words[int(rng.integers(len(words)))] = "other"
        texts.append(" ".join(words))
    texts = list(dict.fromkeys(texts))
    expected = {
        (one, other)
        for one in range(len(texts))
        for other in range(one + 1, len(texts))
        if jaccard(texts[one], texts[other]) >= 0.9
    }
    assert 5 < len(expected) < 55
    assert pairs_of(near_texts(texts)) == expected


def test_case_space_and_punctuation_make_no_difference() -> None:
    texts = ["Good film!", "good  film", "bad film", "GOOD-FILM...", "?!", "...", "Straße", "STRASSE"]
    assert pairs_of(near_texts(texts)) == {(0, 1), (0, 3), (6, 7)}


def test_many_texts_that_share_a_part_are_no_near_duplicates() -> None:
    texts = [f"the same beginning of every text in the set {number:05d}" * 2 for number in range(2000)]
    assert len(near_texts([text[:30] + str(number) for number, text in enumerate(texts)])) < 2000 * 9
    rng = np.random.default_rng(0)
    assert len(near_texts([f"breaking news: {text}" for text in sentences(rng, 500, 12)])) == 0


def test_a_sample_of_shingles_finds_about_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(np.random.default_rng(0), 200, 200)
    texts += [f"{text} and" for text in texts[:50]]
    whole = pairs_of(near_texts(texts))
    assert whole == {(number, 200 + number) for number in range(50)}
    monkeypatch.setattr("assay.data.near_duplicates._MAX_SHINGLES", 40_000)
    monkeypatch.setattr("assay.data.near_duplicates._BLOCK_BYTES", 5_000)
    assert pairs_of(near_texts(texts)) == whole


def test_exact_copies_are_not_counted_and_rows_are_of_the_data_set() -> None:
    texts = ["alpha beta", "gamma delta", "alpha beta", "ALPHA beta", "gamma delta", "unlike"]
    found = find_near_duplicates(text_dataset([0, 1] * 3, texts))
    assert found is not None and (found.num_examples, found.pairs) == (1, ((0, 3),))
    assert find_near_duplicates(table_dataset([0, 1] * 4)) is None


def smooth(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    coarse = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in coarse])


def test_pictures_saved_anew_are_found_and_others_not() -> None:
    images = smooth(np.random.default_rng(0), 300, 40)
    saved = []
    for image in images[:40]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=80)
        saved.append(np.asarray(Image.open(buffer)))
    dark = (images[40:60] * 0.8).astype(np.uint8)
    both = np.concatenate([images, saved, dark])
    found = pairs_of(near_images(both, np.arange(len(both))))
    assert found == {(number, 300 + number) for number in range(60)}
    rows = np.array([3, 250, 303])
    assert pairs_of(near_images(both, rows)) == {(0, 2)}


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 50, 3), (8, 8, 1)])
def test_small_and_blank_images_are_looked_at(shape: tuple[int, int, int]) -> None:
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones(shape, np.uint8)
    found = find_near_duplicates(make_dataset([0, 1] * 3, images))
    assert found is not None and found.num_examples == 0
