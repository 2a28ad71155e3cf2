from collections import Counter
from itertools import chain

import numpy as np
import pytest
from PIL import Image, ImageFont
from sklearn.linear_model import LogisticRegression

from simulations.glyphs import SCRIPTS, SEEN, UNSEEN, digits, fonts_with, render

# No font has a glyph for the last code point: drawing it shows the font's box for missing ones.
MISSING = "\U0010ffff"
HAN = "\u6c34"


def undistorted(character: str, path: str, em: int = 48) -> bytes:
    """The glyph's shape and pixels, trimmed, with no distortion."""
    font = ImageFont.truetype(path, em, layout_engine=ImageFont.Layout.BASIC)
    mask = font.getmask(character)
    image = Image.frombytes("L", mask.size, bytes(mask))
    trimmed = image.crop(image.getbbox())
    return bytes(f"{trimmed.size}", "ascii") + trimmed.tobytes()


def test_the_scripts_are_many_and_either_seen_or_unseen():
    """Pre-training gets hundreds of classes, new devices eight alphabets or more; none is both."""
    assert (*SEEN, *UNSEEN) == tuple(SCRIPTS)
    assert len(UNSEEN) >= 8
    assert sum(len(SCRIPTS[name]) for name in SEEN) >= 300
    assert min(len(characters) for characters in SCRIPTS.values()) >= 10


def test_no_character_is_in_two_scripts():
    counts = Counter(chain.from_iterable(SCRIPTS.values()))
    assert [character for character, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_character_has_ink_and_is_not_the_box_for_missing_ones(script):
    """In every font said to have it, a character's glyph has pixels and differs from .notdef."""
    for character in SCRIPTS[script]:
        fonts = fonts_with(character)
        assert len(fonts) >= 2, character
        for path in fonts:
            assert undistorted(character, str(path)) != undistorted(MISSING, str(path)), (
                character,
                path.name,
            )


@pytest.mark.parametrize(
    "characters", [*(SCRIPTS[name] for name in UNSEEN), "".join(SCRIPTS[name] for name in SEEN)]
)
def test_no_two_characters_of_a_script_share_a_glyph(characters):
    """In no font do two of an unseen script, or two of all seen ones, have the same pixels."""
    drawn: dict[tuple[str, bytes], list[str]] = {}
    for character in characters:
        for path in fonts_with(character):
            drawn.setdefault((path.name, undistorted(character, str(path))), []).append(character)
    assert [(name, same) for (name, _), same in drawn.items() if len(same) > 1] == []


def test_images_and_labels_have_the_promised_shapes_types_and_ranges():
    """Labels are positions; the whole grey scale is used; ink is lighter than ground."""
    images, labels = render("AБΩ", 20, size=24, seed=3)
    assert images.shape == (60, 24, 24)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert labels.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    assert images.min() < 20
    assert images.max() > 235
    border = np.median(images[:, [0, -1]])
    assert np.median(images[:, 8:16, 8:16].max(axis=(1, 2))) > border + 60


@pytest.mark.parametrize("size", [8, 31, 64])
def test_any_size_from_eight_pixels_is_rendered(size):
    images, _ = render("A", 3, size=size, seed=0)
    assert images.shape == (3, size, size)


def test_the_same_seed_gives_the_same_images_and_another_seed_others():
    first, _ = render(SCRIPTS["greek"], 4, seed=1)
    again, _ = render(SCRIPTS["greek"], 4, seed=1)
    other, _ = render(SCRIPTS["greek"], 4, seed=2)
    assert np.array_equal(first, again)
    assert not (first == other).all(axis=(1, 2)).any()


def test_the_global_generators_are_neither_read_nor_moved():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first, _ = render("AB", 3, seed=1)
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(1)
    assert np.array_equal(render("AB", 3, seed=1)[0], first)


def test_a_characters_images_do_not_depend_on_the_characters_around_it():
    """Neither order nor company matters; a list of characters gives what the string gives."""
    images, labels = render("ABC", 5, seed=7)
    turned, turned_labels = render(["C", "A"], 5, seed=7)
    assert np.array_equal(images[labels == 2], turned[turned_labels == 0])
    assert np.array_equal(images[labels == 0], turned[turned_labels == 1])


def test_a_longer_series_begins_with_the_shorter_one():
    assert np.array_equal(render("Ж", 9, seed=5)[0][:4], render("Ж", 4, seed=5)[0])


def test_no_two_images_of_a_character_are_alike():
    images, _ = render("A", 50, seed=0)
    assert len({image.tobytes() for image in images}) == 50


def test_the_problem_is_neither_trivial_nor_hopeless():
    """A linear classifier on the pixels beats chance (4 %) by far and is far from perfect."""
    images, labels = render(SCRIPTS["latin_upper"], 60, seed=0)
    pixels = images.reshape(len(images), -1) / 255
    learn = np.arange(len(labels)) % 60 < 40
    linear = LogisticRegression(C=0.01, max_iter=100).fit(pixels[learn], labels[learn])
    assert 0.2 < linear.score(pixels[~learn], labels[~learn]) < 0.8


@pytest.mark.parametrize(
    ("characters", "count", "options", "message"),
    [
        ("", 1, {}, "characters is empty"),
        (["A", "BC"], 1, {}, r"\['BC'\] are not single characters"),
        (["A", ""], 1, {}, "are not single characters"),
        ("ABA", 1, {}, r"\['A'\] occur more than once"),
        (["A", HAN, MISSING], 1, {}, r"U\+6C34.*U\+10FFFF"),
        ("A ", 1, {}, r"no shipped font has a glyph for ' ' \(U\+0020\)"),
        ("A", 0, {}, "images_per_character is 0"),
        ("A", 1, {"size": 7}, "size is 7 pixels; it must be at least 8"),
        ("A", 1, {"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments_are_refused_with_their_value(characters, count, options, message):
    with pytest.raises(ValueError, match=message):
        render(characters, count, **({"seed": 0} | options))


def test_a_character_that_only_the_last_resort_font_covers_has_no_font():
    """LastResort claims every code point; counting it would draw boxes."""
    assert fonts_with(HAN) == ()


def test_digits_are_all_handwritten_ones_light_on_black():
    images, labels = digits(size=16)
    assert images.shape == (1797, 16, 16)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert set(labels.tolist()) == set(range(10))
    assert np.median(images[:, :, 0]) == 0
    assert images.max() == 255


def test_digits_of_the_original_size_keep_their_grey_levels():
    """Of the 17 levels, 0 is black, 16 is white, and 8 is in the middle."""
    images, _ = digits(size=8)
    assert np.array_equal(np.unique(images), np.round(np.arange(17) * 255 / 16).astype(np.uint8))


def test_digits_refuse_a_size_below_eight():
    with pytest.raises(ValueError, match="size is 7 pixels"):
        digits(size=7)
