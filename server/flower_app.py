"""The Flower door of the server: devices are served as they appear, and none waits for a slower one.

Flower's server asks and its nodes answer. Each node is asked for its task's signature and made the
offer in one message (`query.signature`); its reply is assigned a sub-network (`train.adapt`), once that
is healed if the device is ready to wait; and what comes back is recorded, so that it votes for whoever
is asked next.
"""

from __future__ import annotations

import logging
import time

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.backbone import Weights, backbone_weights
from common.files import write_whole
from common.settings import FleetSettings, fleet_settings
from server.coordinator import Coordinator
from server.fleet import Fleet, Watch
from server.fleet_report import HEADER, DeviceOutcome, FleetReport
from server.healing.heal_library import store_of
from server.healing.healer import healer_of
from server.library import Library
from server.settings import VotingSettings

__all__ = ["DeviceOutcome", "FleetReport", "FleetSettings", "Watch", "app", "serve_fleet", "server_app"]

# A child of Flower's own logger, so that `flwr log` shows it.
logger = logging.getLogger("flwr.maskvote")


def server_app(
    settings: FleetSettings | None = None,
    *,
    weights: Weights | None = None,
    watch: Watch | None = None,
) -> ServerApp:
    """The app of the server; without settings it reads those of its run.

    `weights` are the backbone's; without them they are read from the settings' checkpoint.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        chosen = settings or fleet_settings(context.run_config)
        with Library.open(chosen.library) as library:
            held = weights or backbone_weights(library.offer.backbone, chosen.checkpoint)
            serve_fleet(grid, library, held, chosen, watch)

    return app


def serve_fleet(
    grid: Grid,
    library: Library,
    weights: Weights,
    settings: FleetSettings,
    watch: Watch | None = None,
) -> FleetReport:
    """Serve devices as they appear, until there is no more to do; what became of each.

    What one device does wrong is counted, and stops no other. The report is logged and written also
    when the run is stopped: what was recorded until then stays in the library.
    """
    voting = VotingSettings(
        neighbours=settings.neighbours, explore=settings.explore, prior=settings.prior
    )
    store = store_of(library)
    with healer_of(library, store, weights, settings.heal_images, settings.heal_seconds) as healer:
        coordinator = Coordinator(library, weights, voting, healed=store, healer=healer)
        if healer is not None:
            healer.start()  # its images are read before the first device waits
        fleet = Fleet(grid, coordinator, settings, watch)
        return _serve(fleet, library, settings)


def _serve(fleet: Fleet, library: Library, settings: FleetSettings) -> FleetReport:
    began, entries_before = time.monotonic(), len(library)
    logger.info("%s", HEADER)
    try:
        done = False
        while not done:
            fleet.meet_newcomers()
            fleet.send_healed()
            fleet.ask_for_signatures()
            if not fleet.hear_replies():
                time.sleep(settings.poll_seconds)
            fleet.give_up_on_lost_replies()
            done = fleet.is_done()
    finally:
        fleet.end()
        report = FleetReport(
            devices=tuple(fleet.ended),
            entries_before=entries_before,
            entries_after=len(library),
            unserved=fleet.waiting,
            seconds=time.monotonic() - began,
        )
        logger.info(
            "%d adapted, %d failed %s; the library holds %d entries, %d before",
            sum(device.stage == "adapted" for device in report.devices),
            sum(report.errors.values()),
            report.errors or "",
            report.entries_after,
            report.entries_before,
        )
        if settings.report is not None:
            write_whole(settings.report, report.to_json().encode())
    return report


app = server_app()
"""What Flower runs on the server."""
