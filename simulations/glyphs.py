"""Glyph images for demos that must run with no download.

Every image is one character in one of the fonts that matplotlib ships, light on dark, and distorted
enough that classes have to be learned. Characters fall into scripts: a backbone is pre-trained on
the `SEEN` ones, and the `UNSEEN` ones are alphabets that only new devices bring. `digits` is real
handwriting, from scikit-learn.

Images follow from the seed and the installed fonts: with another release of matplotlib or Pillow
(and so FreeType) some pixels may differ.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from sklearn.datasets import load_digits


def _span(first: int, last: int, without: Sequence[int] = ()) -> str:
    return "".join(chr(code) for code in range(first, last + 1) if code not in without)


# Left out are characters that look like one kept before them once size and position are random: c
# beside C, Greek and Cyrillic capitals that are Latin ones, bars, dots. The seen scripts are told
# apart from each other too, as one classifier has to name all their characters.
_SEEN_SCRIPTS = {
    "latin_upper": "ABCDEFGHJKLMNOPQRSTUVWXYZ",
    "latin_lower": "abdefghjmnqrty",
    "latin_accented": "ÀÈÖÞäêñöûąċĝĥĭĵĺłŉśţůŴż",
    "phonetic": "ɐɔɗɚɟɢɥɮɷɺɽʀʂʅʈʋʎʑʔʗʛʟʣʦʩʬʯ",
    "greek": "ΓΔΛΞΠΣΦΨΩΪάέήαβγδεζηθλμξπςστφχψω",
    "cyrillic": "БДЖЗИЙЛУЦЧШЩЪЫЭЮЯбфђёєїљњћ",
    "syllabics": "ᐁᐊᐐᐕᐞᐣᐪᐰᐸᐾᑃᑈᑐᑙᑞᑣᑩᑮᑴᑹᑿᒄᒉᒎᒔᒙᒞᒤᒫᒰᒵᒻᓂᓈᓑᓖᓛᓠᓦᓬᓱᓷᓼᔁᔆᔔᔙᔞᔤᔩᔮᔳᔹᔾᕅᕊᕐᕖᕛᕡᕦᕴᕹᖁᖊᖏᖕᖤᖩᖮᙱᙶ",
    "mathematics": "∀∆∌∓∞∥∬∴∻≃≊≏≖≜≢≨≮≶≼⊁⊇⊏⊕⊞⊥⊫⊱⊶⊼⋈⋐⋖⋜⋢⋧⋭⋷",
    "arrows": "←↕↚↞↣↨↭↱↶↻⇀⇅⇉⇎⇓⇘⇝⇡⇦⇫⇱⇵⇺⇿",
    "geometry": "■▦▬▲▹◀◇◍◓◙◟◥◪◱◷◿",
    "symbols": "☀☄☉☍☑☖☚☞☣☧☫☰☺☾♃♇♋♐♔♘♝♡♥♪♮♲♺♾⚅⚐⚔⚘⚞⚢⚦⚫⚯⚴⛀⛢",
}
_UNSEEN_SCRIPTS = {
    "armenian_upper": _span(0x0531, 0x0556, without=(0x053C,)),
    "armenian_lower": _span(0x0561, 0x0586, without=(0x0564, 0x0572, 0x0582)),
    "georgian": _span(0x10D0, 0x10F6),
    "asomtavruli": _span(0x10A0, 0x10C5),
    "nuskhuri": _span(0x2D00, 0x2D25),
    "hebrew": _span(0x05D0, 0x05EA, without=(0x05D5, 0x05D8, 0x05DF)),
    "arabic": _span(0x0627, 0x064A, without=(*range(0x063B, 0x0641), 0x062D, 0x0638)),
    "tifinagh": _span(0x2D30, 0x2D65, without=(0x2D42, 0x2D48, 0x2D4F, 0x2D51, 0x2D54, 0x2D59)),
    "nko": _span(0x07CA, 0x07E6),
    "lao": _span(0x0E94, 0x0EAB, without=(0x0E98, 0x0EA0, 0x0EA4, 0x0EA6, 0x0EA8, 0x0EA9)),
}
SCRIPTS: dict[str, str] = _SEEN_SCRIPTS | _UNSEEN_SCRIPTS
"""The characters of each script, none twice; no two of a script share a glyph."""
SEEN: tuple[str, ...] = tuple(_SEEN_SCRIPTS)
"""Names of the scripts to pre-train on; no two characters of all of them share a glyph."""
UNSEEN: tuple[str, ...] = tuple(_UNSEEN_SCRIPTS)
"""Names of the scripts kept for new devices; some of their glyphs resemble seen ones."""

SMALLEST_SIZE = 8
_INK_TEST_EM = 32

# Text families only: LastResort maps every code point to a placeholder box, and the Computer Modern
# files put other glyphs at Latin code points.
_FONT_PATTERNS = ("DejaVuSans*.ttf", "DejaVuSerif*.ttf", "STIXGeneral*.ttf")

# What is drawn uniformly for each image, as (least, most).
_DISTORTIONS = {
    "font": (0.0, 1.0),  # position in the list of fonts
    "extent": (0.5, 0.85),  # longer side of the glyph / side of the image
    "aspect": (-0.25, 0.25),  # log of horizontal / vertical stretch
    "rotation": (-0.35, 0.35),  # radians
    "shear": (-0.35, 0.35),  # horizontal shift / height
    "shift_x": (-0.1, 0.1),  # of the glyph's centre / side of the image
    "shift_y": (-0.1, 0.1),
    "stroke": (0.0, 0.05),  # thickening / em
    "blur": (0.0, 0.035),  # radius / side of the image
    "background": (0.0, 70.0),  # grey level
    "ink": (150.0, 255.0),  # grey level
    "noise": (5.0, 35.0),  # standard deviation, grey levels
}


@cache
def fonts_with(character: str) -> tuple[Path, ...]:
    """The shipped font files that draw ink for one character, by file name; empty if none does."""
    with_glyph = (path for path, codes in _code_points().items() if ord(character) in codes)
    return tuple(p for p in with_glyph if _font(p, _INK_TEST_EM).getmask(character).getbbox())


def render(
    characters: Sequence[str], images_per_character: int, *, size: int = 32, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw every character many times, each time distorted at random.

    The images of a character depend on the seed, the size and the character alone: neither on the
    other characters nor on their order; and a longer series begins with the shorter one.

    Args:
        characters: C single characters, none twice; a string will do.
        images_per_character: n, at least 1.
        size: side of the square images in pixels, at least `SMALLEST_SIZE`.
        seed: any non-negative integer.

    Returns:
        Images, uint8 (C * n, size, size), light ink on a dark ground, in 0..255; and labels, int64
        (C * n,), the position of the character in `characters`, ascending. A glyph may run over
        the border.

    Raises:
        ValueError: for arguments outside the above, and for characters that no shipped font has.
    """
    _check_characters(characters)
    _check_size(size)
    if images_per_character < 1:
        raise ValueError(f"images_per_character is {images_per_character}; it must be at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    images = [_render_character(c, images_per_character, size, seed) for c in characters]
    labels = np.repeat(np.arange(len(characters), dtype=np.int64), images_per_character)
    return np.concatenate(images), labels


def digits(*, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's 1797 handwritten digits, enlarged from 8x8 pixels; always the same.

    Args:
        size: side of the square images in pixels, at least `SMALLEST_SIZE`.

    Returns:
        Images, uint8 (1797, size, size), light ink on black, in 0..255; and labels, int64 (1797,),
        0..9.

    Raises:
        ValueError: if the size is too small.
    """
    _check_size(size)
    handwritten = load_digits()
    small = np.round(handwritten.images * (255 / 16)).astype(np.uint8)
    enlarged = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in small]
    return np.stack([np.asarray(image) for image in enlarged]), handwritten.target.astype(np.int64)


def _check_characters(characters: Sequence[str]) -> None:
    if len(characters) == 0:
        raise ValueError("characters is empty; give at least one")
    long = [c for c in characters if len(c) != 1]
    if long:
        raise ValueError(f"{long} are not single characters; give one code point each")
    if len(set(characters)) < len(characters):
        twice = sorted({c for c in characters if list(characters).count(c) > 1})
        raise ValueError(f"{twice} occur more than once; a character can have one label only")
    missing = [f"{c!r} (U+{ord(c):04X})" for c in characters if not fonts_with(c)]
    if missing:
        raise ValueError(f"no shipped font has a glyph for {', '.join(missing)}; choose from SCRIPTS")


def _check_size(size: int) -> None:
    if size < SMALLEST_SIZE:
        raise ValueError(f"size is {size} pixels; it must be at least {SMALLEST_SIZE}")


def _render_character(character: str, count: int, size: int, seed: int) -> np.ndarray:
    """Images of one character, uint8 (count, size, size)."""
    drawn = _draw_distortions(count, np.random.default_rng((seed, ord(character), 0)))
    fonts = fonts_with(character)
    em = 2 * size
    coverage = np.empty((count, size, size), dtype=np.float32)
    for index, (choice, stroke, blur, inverse) in enumerate(
        zip(drawn["font"], drawn["stroke"], drawn["blur"], _inverse_maps(drawn), strict=True)
    ):
        glyph = _glyph(character, fonts[int(choice * len(fonts))], em, stroke * em)
        linear = inverse * (max(glyph.size) / size)
        centre = size * (0.5 + np.array([drawn["shift_x"][index], drawn["shift_y"][index]]))
        offset = np.array(glyph.size) / 2 - linear @ centre
        image = glyph.transform(
            (size, size),
            Image.Transform.AFFINE,
            (*linear[0], offset[0], *linear[1], offset[1]),
            resample=Image.Resampling.BILINEAR,
        )
        coverage[index] = np.asarray(image.filter(ImageFilter.GaussianBlur(float(blur * size))))
    background, ink, noise = (
        drawn[name].astype(np.float32)[:, None, None] for name in ("background", "ink", "noise")
    )
    grain = np.random.default_rng((seed, ord(character), 1))
    grey = background + coverage / 255 * (ink - background)
    grey += noise * grain.standard_normal(grey.shape, dtype=np.float32)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _draw_distortions(count: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """For each distortion, its amounts in `count` images."""
    least, most = np.array(list(_DISTORTIONS.values())).T
    amounts = least + (most - least) * generator.random((count, len(_DISTORTIONS)))
    return dict(zip(_DISTORTIONS, amounts.T, strict=True))


def _inverse_maps(drawn: dict[str, np.ndarray]) -> np.ndarray:
    """From image to glyph, both of side 1 and centred on 0: float64 (count, 2, 2), rows x and y."""
    cosine, sine = np.cos(drawn["rotation"]), np.sin(drawn["rotation"])
    one, zero = np.ones_like(cosine), np.zeros_like(cosine)
    half_aspect = drawn["aspect"] / 2

    def matrices(*entries: np.ndarray) -> np.ndarray:
        return np.stack(entries, axis=-1).reshape(-1, 2, 2)

    rotate = matrices(cosine, -sine, sine, cosine)
    shear = matrices(one, drawn["shear"], zero, one)
    stretch = matrices(np.exp(half_aspect), zero, zero, np.exp(-half_aspect))
    return np.linalg.inv(drawn["extent"][:, None, None] * (rotate @ shear @ stretch))


def _glyph(character: str, path: Path, em: int, stroke: float) -> Image.Image:
    """One glyph at full coverage, 8-bit grey, trimmed to its bounding box."""
    font = _font(path, em)
    left, top, right, bottom = font.getbbox(character, stroke_width=stroke)
    glyph = Image.new("L", (int(np.ceil(right - left)), int(np.ceil(bottom - top))))
    ImageDraw.Draw(glyph).text(
        (-left, -top), character, fill=255, font=font, stroke_width=stroke, stroke_fill=255
    )
    return glyph


@cache
def _font(path: Path, em: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, em, layout_engine=ImageFont.Layout.BASIC)


@cache
def _code_points() -> dict[Path, frozenset[int]]:
    """The code points of every font file, by file name; glyph 0 is the box for missing ones."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    paths = sorted(path for pattern in _FONT_PATTERNS for path in folder.glob(pattern))
    return {
        path: frozenset(code for code, glyph in FT2Font(str(path)).get_charmap().items() if glyph != 0)
        for path in paths
    }
