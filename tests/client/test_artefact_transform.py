"""Images are prepared without torch, bit for bit as torch's own way prepares them."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from client.artefacts.transform import INTERPOLATIONS, Transform
from common.backbone import Backbone
from common.errors import InputError, TaskDataError
from common.image_reading import LARGEST_PIXELS, prepared, read_image
from common.images import PixelImages, pixel_transform

SIZES = [(64, 64), (37, 90), (90, 37), (21, 20), (500, 33), (7, 5), (64, 65), (33, 64)]
"""Width and height: larger and smaller than the input, of all proportions."""
INPUTS = [(3, 64, 64), (1, 32, 32), (3, 48, 64), (3, 65, 33)]


def backbone(size: tuple[int, int, int], interpolation: str = "bicubic") -> Backbone:
    channels = size[0]
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    return Backbone("test_resnet", 4, size, mean, std, interpolation, "fc")


def transform_of(described: Backbone) -> Transform:
    return Transform.of_backbone(vars(described))


def drawn(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    lot = np.random.default_rng(sum(size))
    image = Image.fromarray(lot.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    if mode == "RGBA":
        image.putalpha(Image.fromarray(lot.integers(0, 256, (size[1], size[0]), dtype=np.uint8)))
    return image if mode in ("RGB", "RGBA") else image.convert(mode)


def read_to_train(described: Backbone, path) -> np.ndarray:
    return read_image(path, pixel_transform(described)).numpy()


def read_to_predict(described: Backbone, path) -> np.ndarray:
    return transform_of(described).read(path)


READING = pytest.mark.parametrize("read", [read_to_train, read_to_predict])


def same_pixels(described: Backbone, path) -> None:
    expected = read_to_train(described, path)
    found = read_to_predict(described, path)
    assert found.dtype == np.uint8
    assert found.shape == described.input_size
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_interpolation_gives_the_same_pixels_at_every_proportion(tmp_path, size, interpolation):
    drawn(size).save(tmp_path / "image.png")
    for given in INPUTS:
        same_pixels(backbone(given, interpolation), tmp_path / "image.png")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("given", INPUTS[:2], ids=["colour", "grey"])
def test_every_kind_of_colour_gives_the_same_pixels(tmp_path, mode, given):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    drawn((80, 50), mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    same_pixels(backbone(given), path)


def test_a_palette_with_a_transparent_colour_gives_the_same_pixels(tmp_path):
    drawn((80, 50), "P").save(tmp_path / "image.png", transparency=3)
    same_pixels(backbone((3, 64, 64)), tmp_path / "image.png")


GREYS, IN_8_BITS = [0, 255, 256, 300, 32768, 65535], [0, 0, 1, 1, 128, 255]


@READING
@pytest.mark.parametrize("given", [(1, 1, 6), (3, 1, 6)], ids=["grey", "colour"])
@pytest.mark.parametrize("options", [{}, {"transparency": 300}], ids=["opaque", "a grey transparent"])
def test_grey_of_16_bits_is_divided_by_256(tmp_path, read, given, options):
    Image.fromarray(np.array([GREYS], dtype=np.uint16)).save(tmp_path / "grey.png", **options)
    found = read(backbone(given), tmp_path / "grey.png")
    assert found.tolist() == [[IN_8_BITS]] * given[0]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_every_mode_in_which_pillow_has_16_bits_becomes_8(mode):
    """Older Pillow has a PNG's in "I", where a TIFF may have numbers of any size."""
    kind = {"I;16B": ">u2", "I": "<i4"}.get(mode, "<u2")
    image = Image.frombytes(mode, (6, 1), np.array(GREYS, dtype=kind).tobytes())
    image.format = "PNG"
    assert list(prepared(image, 1).tobytes()) == IN_8_BITS


def lying(path, orientation: int) -> Image.Image:
    """A photograph that says so, in a file without loss; given as Pillow itself turns it upright."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    drawn((80, 50)).save(path, exif=exif, lossless=True)
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image)


@READING
@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_photograph_is_turned_upright_as_it_says(tmp_path, read, suffix, orientation):
    upright = lying(tmp_path / f"lying.{suffix}", orientation)
    assert upright.size == ((50, 80) if 5 <= orientation <= 8 else (80, 50))
    upright.save(tmp_path / "upright.png")
    expected = read(backbone((3, 64, 64)), tmp_path / "upright.png")
    assert np.array_equal(read(backbone((3, 64, 64)), tmp_path / f"lying.{suffix}"), expected)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_jpeg_that_says_how_it_lies_gives_the_same_pixels(tmp_path, orientation):
    lying(tmp_path / "image.jpg", orientation)
    for given in INPUTS:
        same_pixels(backbone(given), tmp_path / "image.jpg")


@READING
def test_an_exif_that_nobody_can_read_takes_no_image_away(tmp_path, read):
    drawn((80, 50)).save(tmp_path / "plain.png")
    drawn((80, 50)).save(tmp_path / "odd.png", exif=b"Exif\0\0no TIFF at all")
    with Image.open(tmp_path / "odd.png") as image, pytest.raises(SyntaxError):
        image.getexif()
    expected = read(backbone((3, 64, 64)), tmp_path / "plain.png")
    assert np.array_equal(read(backbone((3, 64, 64)), tmp_path / "odd.png"), expected)


@pytest.mark.parametrize("given", INPUTS, ids=str)
def test_normalised_pixels_are_the_same_numbers(given):
    described = backbone(given)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *given), dtype=np.uint8)
    images = PixelImages(torch.from_numpy(pixels), torch.zeros(2), described)
    expected = images.batch(torch.arange(2)).numpy()
    found = transform_of(described).normalised(pixels)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def break_a_chunk(path) -> None:
    """Where the image's second chunk of pixels would begin there are no letters."""
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[33:37])
    assert content[37:41] == b"IDAT"
    half = size // 2
    content[33:37] = half.to_bytes(4)
    content[41 + half : 45 + half] = zlib.crc32(content[37 : 41 + half]).to_bytes(4)
    content[45 + half : 53 + half] = b"\0\0\0\x10\0\1\2\3"
    path.write_bytes(content)


UNREADABLE = {
    "text": lambda path: path.write_text("no image"),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "broken in the middle": break_a_chunk,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@READING
@pytest.mark.parametrize("spoil", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_is_no_image_is_named_in_a_sentence(tmp_path, spoil, read):
    path = tmp_path / "image.png"
    drawn((80, 50)).save(path)
    spoil(path)
    with pytest.raises(TaskDataError, match=r"image\.png cannot be read as an image \(.+\); repair") as e:
        read(backbone((3, 64, 64)), path)
    assert "\n" not in str(e.value)


def enormous(path, width: int, height: int) -> None:
    """A PNG of one colour by its header alone: a file of some bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))


def test_pillow_raises_a_syntax_error_at_a_broken_chunk(tmp_path):
    drawn((80, 50)).save(tmp_path / "image.png")
    break_a_chunk(tmp_path / "image.png")
    with pytest.raises(SyntaxError, match="broken PNG file"), Image.open(tmp_path / "image.png") as image:
        image.load()


@READING
def test_an_image_larger_than_memory_is_refused_before_it_is_unpacked(tmp_path, read):
    enormous(tmp_path / "bomb.png", 100_000, 100_000)
    with pytest.raises(TaskDataError, match=r"bomb\.png cannot be read .*decompression bomb"):
        read(backbone((3, 64, 64)), tmp_path / "bomb.png")


@READING
@pytest.mark.parametrize(
    ("size", "told"), [((3, 64, 64), "64 x 3,200,000"), ((3, 130, 65), "65 x 3,250,000")], ids=str
)
def test_a_line_that_would_be_resized_to_more_than_memory_is_refused(tmp_path, read, size, told):
    image = Image.new("RGB", (1, 50_000))
    image.save(tmp_path / "line.png")
    assert LARGEST_PIXELS < 64 * 64 * 50_000
    with pytest.raises(TaskDataError, match=rf"line\.png .*would be resized to {told}"):
        read(backbone(size), tmp_path / "line.png")


WRONG = {
    "channels": ({"input_size": (2, 8, 8)}, "2 channels and 3 means"),
    "size": ({"input_size": (3, 0, 8)}, r"images are \(0, 8\)"),
    "a size that is no number": ({"input_size": (3, "8", 8)}, "not .height, width"),
    "interpolation": ({"interpolation": "random"}, "'random' is none of nearest"),
    "deviation": ({"std": (0, 1, 1)}, "do not normalise"),
    "means": ({"mean": (float("nan"), 1, 1)}, "do not normalise"),
    "nothing": ({"mean": None}, "lacks how images are prepared"),
}


@pytest.mark.parametrize(("changes", "reason"), WRONG.values(), ids=WRONG.keys())
def test_a_description_that_prepares_no_image_is_refused(changes, reason):
    with pytest.raises(InputError, match=reason):
        Transform.of_backbone({**vars(backbone((3, 8, 8))), **changes})
