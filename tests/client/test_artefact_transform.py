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
    # What the system refuses to read says nothing about the image.
    said = r"image\.png cannot be read (as an image \(.+\); repair|\(Is a directory\); check the path)"
    with pytest.raises(TaskDataError, match=said) as e:
        read(backbone((3, 64, 64)), path)
    assert "\n" not in str(e.value)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def put_behind_the_header(path, *chunks: bytes) -> None:
    """Chunks that say something of a PNG, before its pixels."""
    content = path.read_bytes()
    path.write_bytes(content[:33] + b"".join(chunks) + content[33:])


def international_text(key: bytes, text: bytes) -> bytes:
    return chunk(b"iTXt", key + b"\0\1\0\0\0" + zlib.compress(text))


MEGABYTES = 2**20
LONG_TEXTS = {
    "XMP of 3 MB": lambda: international_text(b"XML:com.adobe.xmp", b"<x/>" * (3 * MEGABYTES // 4)),
    "a comment of 3 MB": lambda: chunk(
        b"zTXt", b"Comment\0\0" + zlib.compress(b"word " * (3 * MEGABYTES // 5))
    ),
    "a colour profile of 3 MB": lambda: chunk(
        b"iCCP", b"press\0\0" + zlib.compress(bytes(3 * MEGABYTES))
    ),
    "texts of 50 MB in all": lambda: b"".join(
        international_text(b"edits %d" % number, b"x" * 10 * MEGABYTES) for number in range(5)
    ),
}
BOMBS = {
    "a text of 65 MB": lambda: international_text(b"XML:com.adobe.xmp", bytes(65 * MEGABYTES)),
    "a comment of 65 MB": lambda: chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(65 * MEGABYTES))),
    "a colour profile of 65 MB": lambda: chunk(
        b"iCCP", b"press\0\0" + zlib.compress(bytes(65 * MEGABYTES))
    ),
    "many texts of 13 MB": lambda: b"".join(
        international_text(b"edits %d" % number, b"x" * 13 * MEGABYTES) for number in range(5)
    ),
}


@READING
@pytest.mark.parametrize("text", LONG_TEXTS.values(), ids=LONG_TEXTS.keys())
def test_a_png_may_say_much_of_itself(tmp_path, read, text):
    drawn((80, 50)).save(tmp_path / "plain.png")
    drawn((80, 50)).save(tmp_path / "image.png")
    put_behind_the_header(tmp_path / "image.png", text())
    expected = read(backbone((3, 64, 64)), tmp_path / "plain.png")
    assert np.array_equal(read(backbone((3, 64, 64)), tmp_path / "image.png"), expected)


@READING
@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_a_png_that_unpacks_to_more_text_than_an_image_needs_is_refused(tmp_path, read, text):
    drawn((80, 50)).save(tmp_path / "bomb.png")
    put_behind_the_header(tmp_path / "bomb.png", text())
    assert (tmp_path / "bomb.png").stat().st_size < MEGABYTES
    with pytest.raises(TaskDataError, match=r"bomb\.png cannot be read .*[Tt]oo (large|much memory)"):
        read(backbone((3, 64, 64)), tmp_path / "bomb.png")


@READING
def test_a_jpeg_may_say_much_of_itself(tmp_path, read):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.ImageDescription] = "x" * 60_000
    drawn((80, 50)).save(tmp_path / "image.jpg", exif=exif, icc_profile=bytes(3 * MEGABYTES))
    drawn((80, 50)).save(tmp_path / "plain.jpg")
    with Image.open(tmp_path / "plain.jpg") as image:
        image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    expected = read(backbone((3, 64, 64)), tmp_path / "upright.png")
    assert np.array_equal(read(backbone((3, 64, 64)), tmp_path / "image.jpg"), expected)


WITH_SEVERAL = {
    "gif": {"save_all": True},
    "webp": {"save_all": True, "lossless": True},
    "apng": {"save_all": True, "format": "PNG"},
    "tif": {"save_all": True},
    "mpo": {"save_all": True, "format": "MPO"},
    "jpg": {"save_all": True, "format": "MPO"},
}
"""Files of several images; phones write MPO under the name of a JPEG."""


@READING
@pytest.mark.parametrize("suffix", WITH_SEVERAL)
def test_of_a_file_of_several_images_the_first_counts(tmp_path, read, suffix):
    first, path = Image.new("RGB", (80, 50), (90, 90, 90)), tmp_path / f"image.{suffix}"
    others = [Image.new("RGB", (80, 50), (shade,) * 3) for shade in (0, 255)]
    first.save(path, append_images=others, **WITH_SEVERAL[suffix])
    found = read(backbone((3, 64, 64)), path)
    assert np.abs(found.astype(int) - 90).max() <= 1


@READING
def test_what_is_in_a_file_counts_and_not_its_suffix(tmp_path, read):
    drawn((80, 50)).save(tmp_path / "image.jpg")
    drawn((80, 50)).save(tmp_path / "wrong.png", "JPEG")
    expected = read(backbone((3, 64, 64)), tmp_path / "image.jpg")
    assert np.array_equal(read(backbone((3, 64, 64)), tmp_path / "wrong.png"), expected)


@READING
def test_a_pgm_of_16_bits_is_divided_by_256_as_a_png_is(tmp_path, read):
    values = np.array([GREYS], dtype=">u2").tobytes()
    (tmp_path / "grey.pgm").write_bytes(b"P5 6 1 65535\n" + values)
    assert read(backbone((1, 1, 6)), tmp_path / "grey.pgm").tolist() == [[IN_8_BITS]]


@READING
@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused_as_nothing_says_what_is_white(tmp_path, read, mode):
    Image.new(mode, (6, 1), 1).save(tmp_path / "science.tif")
    with pytest.raises(TaskDataError, match=r"science\.tif cannot .*32 bits.* save it with 8 or 16 bits"):
        read(backbone((1, 1, 6)), tmp_path / "science.tif")


def enormous(path, width: int, height: int) -> None:
    """A PNG of one colour by its header alone: a file of some bytes."""

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
