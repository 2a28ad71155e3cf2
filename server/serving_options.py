"""What commands share that serve devices, or heal for them: how masks are elected, what may be healed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from common.command_line import settings_option
from common.image_folders import TYPES_IN_WORDS
from common.option_types import INPUT_DIRECTORY, SHARE
from server.settings import HEALER_SECONDS, VotingSettings

HEAL_IMAGES = click.option(
    "--heal-images",
    type=INPUT_DIRECTORY,
    help=f"Public images ({TYPES_IN_WORDS}), in any layout, to heal networks on for devices that are "
    "ready to wait.",
)
HEAL_SECONDS = settings_option(
    "--heal-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=HEALER_SECONDS,
    help="For one such network.",
)


def voting_options(default: VotingSettings) -> Callable[[Callable], Callable]:
    """The options --neighbours, --explore and --prior; the command gets them as `voting`."""

    def decorate(command: Callable) -> Callable:
        @wraps(command)
        def voting(*, neighbours: int, explore: float, prior: float, **others: Any) -> Any:
            settings = VotingSettings(neighbours=neighbours, explore=explore, prior=prior)
            return command(voting=settings, **others)

        for option in (
            settings_option(
                "--prior", default=default.prior, help="What importance is worth beside votes."
            ),
            settings_option(
                "--explore",
                type=SHARE,
                default=default.explore,
                help="Share of units that are runners-up.",
            ),
            settings_option("--neighbours", default=default.neighbours, help="Tasks that vote."),
        ):
            voting = option(voting)
        return voting

    return decorate
