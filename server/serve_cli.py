"""maskvote-server serve: a library, served over gRPC until the process is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from dataclasses import replace
from pathlib import Path

import click
import structlog

from common.address import Address
from common.command_line import settings_option
from common.errors import InputError
from common.exchange import Limits
from common.option_types import INPUT_DIRECTORY
from common.threads_option import THREADS, compute_with
from server.library import Library
from server.model_options import CHECKPOINT
from server.serving import GRACE_SECONDS, ServeSettings, Tls, serving
from server.serving_options import HEAL_IMAGES, HEAL_SECONDS, voting_options
from server.settings import VotingSettings

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("library", type=PATH)
@CHECKPOINT
@settings_option("--address", default=ServeSettings.address, help="HOST:PORT to listen on.")
@click.option("--certificate", type=PATH, help="The server's certificate chain (PEM).")
@click.option("--key", type=PATH, help="The certificate's key (PEM).")
@click.option("--client-ca", type=PATH, help="Ask devices for a certificate signed by this CA (PEM).")
@click.option("--insecure", is_flag=True, help="Listen without TLS where others can reach it.")
@click.option("--anonymous", is_flag=True, help="Take devices that have no token.")
@click.option("--metrics", "metrics_address", help="HOST:PORT for Prometheus to read.")
@voting_options(VotingSettings())
@HEAL_IMAGES
@HEAL_SECONDS
@settings_option("--calls-per-minute", default=Limits.calls_per_minute, help="Of one token.")
@settings_option("--bytes-per-minute", default=Limits.bytes_per_minute, help="That one token sends.")
@settings_option("--concurrent-calls", default=Limits.concurrent_calls, help="Of one token.")
@settings_option("--grace", default=float(GRACE_SECONDS), help="Seconds that running calls have to end.")
@THREADS
@click.option(
    "--spool",
    type=INPUT_DIRECTORY,
    help="Directory for networks that slow devices fetch; default: the system's temporary one.",
)
def serve(
    library: Path,
    checkpoint: Path | None,
    address: str,
    certificate: Path | None,
    key: Path | None,
    client_ca: Path | None,
    insecure: bool,
    anonymous: bool,
    metrics_address: str | None,
    voting: VotingSettings,
    heal_images: Path | None,
    heal_seconds: float,
    calls_per_minute: int,
    bytes_per_minute: int,
    concurrent_calls: int,
    grace: float,
    threads: int,
    spool: Path | None,
) -> None:
    """Serve LIBRARY to devices and operators until SIGTERM or Ctrl-C; what runs then may end.

    Example: maskvote-server serve birds.db --address 0.0.0.0:7070 --certificate server.crt --key
    server.key
    """
    settings = ServeSettings(
        address=address,
        tls=_tls(certificate, key, client_ca),
        insecure=insecure,
        anonymous=anonymous,
        metrics_address=metrics_address,
        spool=spool,
        limits=Limits(
            calls_per_minute=calls_per_minute,
            bytes_per_minute=bytes_per_minute,
            concurrent_calls=concurrent_calls,
        ),
        voting=voting,
        grace_seconds=grace,
        heal_images=heal_images,
        heal_seconds=heal_seconds,
    )
    if settings.tls is not None:
        settings.tls.credentials()
    log_to_stderr()
    with Library.open(library) as opened:
        from common.backbone import backbone_weights

        compute_with(threads)
        weights = backbone_weights(opened.offer.backbone, checkpoint)
        asyncio.run(_until_told_to_stop(opened, weights, settings))


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise InputError(
            f"TLS needs --certificate ({certificate}) and --key ({key}); give both, or neither and no "
            "--client-ca"
        )
    return Tls(certificate, key, client_ca)


async def _until_told_to_stop(library: Library, weights: dict, settings: ServeSettings) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    async with serving(library, weights, settings) as port:
        listening = replace(Address.read(settings.address, listening=True), port=port)
        click.echo(f"{library.path} is served at {listening}", err=True)
        await told.wait()


class _Noted(logging.Handler):
    """What is said by parts of the server that others use too."""

    def emit(self, record: logging.LogRecord) -> None:
        error = None if record.exc_info is None else record.exc_info[1]
        structlog.get_logger("maskvote").log(record.levelno, record.getMessage(), exc_info=error)


def log_to_stderr() -> None:
    """One line an event on stderr: JSON, or coloured words where somebody is looking."""
    logging.getLogger("maskvote").handlers = [_Noted(logging.INFO)]
    logging.getLogger("maskvote").setLevel(logging.INFO)
    to_a_person = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if to_a_person else [structlog.processors.dict_tracebacks]),
            structlog.dev.ConsoleRenderer() if to_a_person else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
