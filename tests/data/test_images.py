import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from assay.data import images
from assay.data.images import bombs_refused, decode_image, encode_png, fit_image, probe_image, read_file
from assay.errors import BadExampleError
from tests.data.made import pictures


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 5, 1), (6, 5, 3), (200, 180, 3)])
def test_pillow_reads_back_what_encode_png_wrote(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    pixels = rng.integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.mode == ("L" if shape[-1] == 1 else "RGB")
        assert np.array_equal(np.asarray(image).reshape(shape), pixels)


def test_encode_png_writes_the_same_bytes_for_ever() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert encode_png(pixels).hex() == (
        "89504e470d0a1a0a0000000d4948445200000003000000020800000000b81f39c6"
        "00000013494441547801010800f7ff0000010200030405002e00"
        "105dd9c1160000000049454e44ae426082"
    )


def test_bytes_are_kept_where_nothing_changes(rng: np.random.Generator) -> None:
    pixels = pictures(rng, 1)[0]
    data = saved(Image.fromarray(pixels), optimize=True)
    kept, decoded = fit_image(data, (6, 5, 3), "a.png")
    assert kept == data
    assert np.array_equal(decoded, pixels)


@pytest.mark.parametrize("shape", [(6, 5, 1), (3, 5, 3), (12, 10, 3)])
def test_changed_images_become_pngs_of_the_same_pixels(rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
    data = saved(Image.fromarray(pictures(rng, 1)[0]))
    stored, pixels = fit_image(data, shape, "a.png")
    assert pixels.shape == shape
    assert np.array_equal(decode_image(stored, shape, "a.png"), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_applies_it(rng: np.random.Generator, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(pictures(rng, 1, (16, 8, 3))[0]), "JPEG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    probe = probe_image(io.BytesIO(data), "a.jpg")
    assert (probe.height, probe.width) == upright.shape[:2]
    assert ("orientation" in probe.traits) == (orientation != 1)
    stored, pixels = fit_image(data, upright.shape, "a.jpg")
    assert np.array_equal(pixels, upright)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored))), upright)


def test_transparency_is_laid_over_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 255, 51]
    data = saved(Image.fromarray(rgba))
    assert probe_image(io.BytesIO(data), "a.png").traits == {"transparency"}
    assert decode_image(data, (1, 3, 3), "a.png")[0, :, 0].tolist() == [255, 0, 204]


def test_transparency_of_a_palette_is_seen() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("L").convert("P")
    data = saved(image, transparency=0)
    assert "transparency" in probe_image(io.BytesIO(data), "a.png").traits
    assert decode_image(data, (1, 2, 1), "a.png")[0, 0, 0] == 255


def test_16_bits_are_rounded_to_8() -> None:
    deep = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    data = saved(Image.fromarray(deep))
    probe = probe_image(io.BytesIO(data), "a.png")
    assert probe.is_grey and probe.traits == {"16 bits"}
    assert decode_image(data, (1, 6, 1), "a.png").ravel().tolist() == [0, 0, 1, 1, 128, 255]


def test_cmyk_becomes_rgb() -> None:
    data = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert probe_image(io.BytesIO(data), "a.jpg").traits == {"CMYK"}
    red, green, blue = decode_image(data, (8, 8, 3), "a.jpg")[0, 0]
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize(("mode", "is_grey"), [("1", True), ("L", True), ("LA", True), ("RGB", False), ("RGBA", False)])
def test_grey_is_told_by_the_pixel_format(mode: str, is_grey: bool) -> None:
    assert probe_image(io.BytesIO(saved(Image.new(mode, (4, 4)))), "a.png").is_grey == is_grey


def test_a_palette_is_grey_where_all_its_colours_are() -> None:
    grey = Image.new("P", (2, 2))
    grey.putpalette([0, 0, 0, 9, 9, 9])
    colour = Image.new("P", (2, 2))
    colour.putpalette([0, 0, 0, 9, 0, 9])
    assert probe_image(io.BytesIO(saved(grey)), "a.png").is_grey
    assert not probe_image(io.BytesIO(saved(colour)), "a.png").is_grey


def test_another_size_is_refused_unless_resizing(rng: np.random.Generator) -> None:
    data = saved(Image.fromarray(pictures(rng, 1)[0]))
    with pytest.raises(BadExampleError, match=r"b\.png: is 6x5 pixels \(height x width\), not 5x6"):
        decode_image(data, (5, 6, 3), "b.png")
    assert decode_image(data, (5, 6, 3), "b.png", resize=True).shape == (5, 6, 3)


def test_resizing_a_plain_image_keeps_its_colour() -> None:
    data = saved(Image.new("RGB", (4000, 3000), (10, 200, 30)), "JPEG", quality=95)
    assert np.abs(decode_image(data, (50, 60, 3), "a.jpg", resize=True).astype(int) - [10, 200, 30]).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("keep", [0, 1, 10, 40, 0.5, 0.9])
def test_a_broken_off_file_is_named(rng: np.random.Generator, kind: str, keep: float) -> None:
    data = saved(Image.fromarray(pictures(rng, 1, (64, 64, 3))[0]), kind)
    part = data[: int(keep * len(data)) if isinstance(keep, float) else keep]
    with pytest.raises(BadExampleError, match=r"^broken\.jpg: "):
        decode_image(part, (64, 64, 3), "broken.jpg")


@pytest.mark.parametrize("cut", [1, 4, 12, 13, 20])
def test_a_png_without_its_end_is_refused(rng: np.random.Generator, cut: int) -> None:
    with pytest.raises(BadExampleError, match=r"breaks off|is damaged"):
        decode_image(encode_png(pictures(rng, 1)[0])[:-cut], (6, 5, 3), "a.png")


def test_no_flipped_bit_in_a_png_goes_unseen(rng: np.random.Generator) -> None:
    pixels = pictures(rng, 1, (4, 4, 1))[0]
    data = encode_png(pixels)
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(BadExampleError):
                decode_image(bytes(flipped), (4, 4, 1), "a.png")


def test_noise_in_a_file_never_raises_anything_else(rng: np.random.Generator) -> None:
    for kind in ("PNG", "JPEG"):
        data = np.frombuffer(saved(Image.fromarray(pictures(rng, 1, (16, 16, 3))[0]), kind), np.uint8)
        for _ in range(300):
            noisy = data.copy()
            places = rng.integers(0, len(data), 3)
            noisy[places] = rng.integers(0, 256, 3)
            try:
                probe_image(io.BytesIO(noisy.tobytes()), "n")
                decode_image(noisy.tobytes(), (16, 16, 3), "n", resize=True)
            except BadExampleError as error:
                assert str(error).startswith("n: ")


def test_other_formats_are_refused() -> None:
    with pytest.raises(BadExampleError, match="is no JPEG or PNG image"):
        decode_image(saved(Image.new("RGB", (4, 4)), "GIF"), (4, 4, 3), "a.png")


@pytest.mark.parametrize("side", [9500, 16000])
def test_decompression_bombs_are_refused(side: int) -> None:
    bomb = encode_png(np.zeros((1, 1, 1), np.uint8)).replace((1).to_bytes(4, "big") * 2, side.to_bytes(4, "big") * 2, 1)
    header = bomb[12:29]
    bomb = bomb[:29] + struct.pack(">I", zlib.crc32(header)) + bomb[33:]
    with bombs_refused(), pytest.raises(BadExampleError, match="more pixels than is safe"):
        probe_image(io.BytesIO(bomb), "bomb.png")


def test_files_too_large_or_empty_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(b"12345")
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 4)
    with pytest.raises(BadExampleError, match="is empty"):
        read_file(str(tmp_path / "empty"), "empty")
    with pytest.raises(BadExampleError, match="has 5 bytes"):
        read_file(str(tmp_path / "large"), "large")
    with pytest.raises(BadExampleError, match="No such file"):
        read_file(str(tmp_path / "none"), "none")
