"""maskvote-server heal: teach the backbone, on public images, to bear being cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.command_line import remark, settings_option, show_json
from common.image_folders import TYPES_IN_WORDS, LeftOut
from common.option_types import INPUT_DIRECTORY, SHARE
from common.progress import progress
from common.tables import show
from common.threads_option import THREADS, compute_with
from server.admission import check_weights
from server.healing.public_images import image_files
from server.library import Library
from server.model_options import CHECKPOINT, DEVICE, device_named
from server.operate_cli import JSON
from server.serving_options import voting_options
from server.settings import HEAL_VOTING, MOST_IMAGES, HealingSettings, KeepRatios, VotingSettings

if TYPE_CHECKING:
    from server.healing.heal import Watch
    from server.healing.heal_library import Healing


@click.command()
@click.argument("library", type=click.Path(path_type=Path))
@click.option(
    "--images",
    required=True,
    type=INPUT_DIRECTORY,
    help=f"A directory of images ({TYPES_IN_WORDS}) that you may use, in any layout: labels are not "
    "needed.",
)
@CHECKPOINT
@settings_option(
    "--keep-ratio",
    nargs=2,
    type=SHARE,
    default=(KeepRatios.low, KeepRatios.high),
    metavar="LOW HIGH",
    help="Shares of units that devices will ask for.",
)
@voting_options(HEAL_VOTING)
@settings_option("--iterations", type=click.IntRange(min=1), default=HealingSettings.iterations)
@click.option("--seconds", type=float, help="Heal at most so long; without it, all iterations.")
@settings_option(
    "--most-images",
    type=click.IntRange(min=2),
    default=MOST_IMAGES,
    help="Use at most so many, drawn by lot.",
)
@DEVICE
@settings_option("--seed", default=0)
@THREADS
@JSON
def heal(
    library: Path,
    images: Path,
    checkpoint: Path | None,
    keep_ratio: tuple[float, float],
    voting: VotingSettings,
    iterations: int,
    seconds: float | None,
    most_images: int,
    device: str | None,
    seed: int,
    threads: int,
    as_json: bool,
) -> None:
    """Heal LIBRARY's backbone: whatever is cut out of it then starts nearer to the whole.

    It learns, on images of yours, to give its own features through masks such as devices are assigned. A
    server that is running takes it up with the next network it sends, and elects that by this prior.
    What it comes to lies in LIBRARY.healed, which may be deleted.

    Example: maskvote-server heal birds.db --images photographs
    """
    ratios = KeepRatios(*keep_ratio)
    settings = HealingSettings(iterations, float("inf") if seconds is None else seconds)
    left_out = LeftOut()
    image_files(images, most_images, seed, left_out)  # refused before weights are read
    remark(left_out.sentence(images))
    with Library.open(library) as opened:
        from common.backbone import backbone_weights
        from server.healing.heal_library import heal_library, store_of
        from server.healing.public_images import public_images

        compute_with(threads)
        device = device_named(device)
        store = store_of(opened)
        store.check()
        backbone = opened.offer.backbone
        weights = backbone_weights(backbone, checkpoint)
        check_weights(weights, opened.weights_digest)
        weights = {name: tensor.to(device) for name, tensor in weights.items()}
        with _bars() as bar:
            public = public_images(
                images, backbone, weights, store, most=most_images, seed=seed, watch=bar("Features")
            )
            healing = heal_library(
                opened, weights, public, store, ratios, settings,
                voting=voting, seed=seed, watch=bar("Healing"),
            )  # fmt: skip
    _tell(library, store.directory, healing, as_json)


@contextmanager
def _bars() -> Iterator[Callable[[str], Watch]]:
    """Makes progress bars, each by its name."""
    with progress() as bars:

        def bar(name: str) -> Watch:
            added = None

            def watch(done: int, total: int) -> None:
                nonlocal added
                if added is None:
                    added = bars.add_task(name, total=total)
                bars.update(added, completed=done)

            return watch

        yield bar


def _tell(library: Path, directory: Path, healing: Healing, as_json: bool) -> None:
    healed = healing.healed
    if as_json:
        show_json(
            healed.facts
            | {
                "store": str(directory),
                "distance": {
                    "keep_ratio": round(healing.keep_ratio, 4),
                    "before": healing.distance_before,
                    "after": healing.distance_after,
                },
            }
        )
        return
    show(
        f"{library}: healed backbone",
        ["what", "number"],
        [
            ["keep ratios", f"{healed.low:g}-{healed.high:g}"],
            ["prior", f"{healed.prior:,g}"],
            ["entries there were", f"{healed.entries:,}"],
            ["public images", f"{healed.images:,}"],
            ["iterations", f"{healed.iterations:,}"],
            ["seconds", f"{healed.seconds:,.1f}"],
            ["distance before", f"{healing.distance_before:.3f}"],
            ["distance after", f"{healing.distance_after:.3f}"],
        ],
        f"distance: of features from the whole backbone's, at a keep ratio of {healing.keep_ratio:.1%}; "
        "0 is none, 1 is what knows nothing.",
    )
