"""What a person is told of an artefact: its card in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from client.artefacts.card import Card, card_path
from client.artefacts.kinds import TOLERANCE

POINT = 0.01


def sentences_of(artefact: Path, card: Card) -> Iterator[str]:
    """A line for each thing that a card says and a person wants to know."""
    yield (
        f"{artefact}: {card['bytes']:,} bytes, {len(card['classes'])} classes, "
        f"{card['parameters']:,} parameters, {card['flops'] / 1e6:,.1f} MFLOPs an image."
    )
    if "difference" in card:
        yield (
            f"Its logits differ from torch's by at most {card['difference']:.1e} of the largest "
            f"({TOLERANCE:.0e} is allowed)" + (f"; opset {card['opset']}." if "opset" in card else ".")
        )
    if "quantisation" in card:
        how = card["quantisation"]
        yield (
            f"Calibrated by {how['setting']} on {how['calibration_images']:,} training images; on these "
            f"it says what float32 says for {how['calibration_agreement']:.1%}."
        )
    if "accuracy" in card:
        yield _of_accuracy(card)
        yield from _of_calibration(card["accuracy"])
    latency = card["latency"]
    yield (
        f"One image takes {latency['milliseconds']:.2f} ms here, with {latency['runtime']} and "
        f"{latency['threads']} thread{'s' * (latency['threads'] != 1)} of {latency['processor']}."
    )
    yield f"All of this stands in {card_path(artefact)}: keep it beside the artefact."


def _of_calibration(found: Card) -> Iterator[str]:
    """Nothing for cards of versions that did not measure it."""
    if "expected_calibration_error" in found:
        yield (
            f"Its largest probabilities are {found['mean_confidence']:.1%} on average; their expected "
            f"calibration error is {found['expected_calibration_error']:.3f} (from 0, the best, to 1)."
        )


def _of_accuracy(card: Card) -> str:
    found = card["accuracy"]
    told = f"It classifies {found['share_right']:.1%} of {found['images']:,} evaluation images right"
    whole = found.get("share_right_float32")
    if whole is None:
        return f"{told}."
    lost = whole - found["share_right"]
    if lost <= 0:
        return f"{told}; float32 {whole:.1%}, so that int8 loses nothing."
    if lost <= POINT:
        return f"{told}; float32 {whole:.1%}, so that int8 loses {100 * lost:.1f} points."
    return (
        f"{told}; float32 {whole:.1%}: int8 loses {100 * lost:.1f} points, more than one, with the best "
        f"of {card['quantisation']['settings_tried']} settings; use --format onnx where that is too much."
    )
