"""Serving: the gRPC server from its start to its end, with TLS, health, reflection and metrics."""

from __future__ import annotations

import resource
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from common.address import LOOPBACK, Address
from common.errors import InputError
from common.exchange import Limits
from common.grpc_codec import DEVICES
from common.pem_files import check_pair, read_authorities, read_certificate, read_key
from common.proto_codec import MAX_MESSAGE_BYTES
from server.access import Access
from server.grpc_calls import Calls, Workers
from server.grpc_service import DeviceService
from server.health import Health
from server.library import Library
from server.metrics import Metrics
from server.operator_codec import OPERATORS
from server.operator_service import OperatorService
from server.settings import HEALER_SECONDS, VotingSettings
from server.spool import Spool
from server.tokens import identify

if TYPE_CHECKING:
    from common.backbone import Weights

SERVICES = (DEVICES, OPERATORS)

WORKERS = 16
"""Threads, most of which wait for the disk: writers that wait together share one sync of it."""
DOORKEEPERS = 4
"""Threads that find out who calls: that never waits for those who write."""
CUTTERS = 4
"""Threads that cut networks, and wait for others that cut the same."""
GRACE_SECONDS = 30
MAX_FILES = 16_384

logger = structlog.get_logger("maskvote")


@dataclass(frozen=True)
class Tls:
    """PEM files: the server's certificate and key, and who signs the certificates of devices.

    With `client_ca`, nobody is talked to who has none of those. Files that have changed are read again
    for the next connection, so that a certificate can be renewed under a running server.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """What the server listens with. InputError unless the files are of use."""
        stamp, configuration = self._stamp(), self._configuration()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal stamp
            try:
                if (changed := self._stamp()) == stamp:
                    return None
                stamp, configuration = changed, self._configuration()
            except (OSError, InputError) as error:
                logger.warning("certificate", error=str(error))
                return None
            logger.info("certificate", renewed=str(self.certificate))
            return configuration

        return grpc.dynamic_ssl_server_credentials(
            configuration, renewed, require_client_authentication=self.client_ca is not None
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        certificate, key = read_certificate(self.certificate), read_key(self.key)
        check_pair(certificate, key, f"{self.certificate} and {self.key}")
        roots = None if self.client_ca is None else read_authorities(self.client_ca)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=roots)

    def _stamp(self) -> list[tuple[int, int]]:
        files = [self.certificate, self.key, *filter(None, [self.client_ca])]
        found = (file.stat() for file in files if file.exists())
        return [(status.st_mtime_ns, status.st_ino) for status in found]


@dataclass(frozen=True)
class ServeSettings:
    """Where the server listens, whom it lets in, and how much of anything it takes.

    Unless it is `insecure`, raises InputError for an address beyond this machine without TLS, and for
    letting in anybody there.
    """

    address: str = "127.0.0.1:7070"
    tls: Tls | None = None
    insecure: bool = False
    anonymous: bool = False
    """Devices need no token. Operators always do."""
    metrics_address: str | None = None
    spool: Path | None = None
    limits: Limits = field(default_factory=Limits)
    voting: VotingSettings = field(default_factory=VotingSettings)
    grace_seconds: float = GRACE_SECONDS
    heal_images: Path | None = None
    """Public images below a directory, to heal networks on for devices that are ready to wait."""
    heal_seconds: float = HEALER_SECONDS

    def __post_init__(self) -> None:
        address = Address.read(self.address, listening=True)
        if self.metrics_address is not None:
            Address.read(self.metrics_address, listening=True)
        if self.insecure or address.loopback:
            return
        if self.tls is None:
            raise InputError(
                f"{self.address} can be reached by others, and without TLS they read every token; give "
                "--certificate and --key, or listen on 127.0.0.1 (or --insecure, if a proxy before "
                "this server speaks TLS)"
            )
        if self.anonymous and self.tls.client_ca is None:
            raise InputError(
                f"{self.address} can be reached by others, and --anonymous lets all of them in; give the "
                "devices tokens, or ask them for certificates with --client-ca"
            )


@asynccontextmanager
async def serving(library: Library, weights: Weights, settings: ServeSettings) -> AsyncIterator[int]:
    """Serve a library until the context is left: then nothing new is taken, and what runs may end.

    Gives the port that is listened on. InputError where an address cannot be used, MismatchError for
    weights of another backbone, TaskDataError where there are no images to heal on.
    """
    from server.coordinator import Coordinator
    from server.healing.heal_library import store_of
    from server.healing.healer import healer_of

    _allow_many_files()
    access = Access(
        lambda token: identify(library, token),
        certificates=settings.tls is not None and settings.tls.client_ca is not None,
        anonymous=settings.anonymous,
    )
    spool = Spool(settings.spool)
    with ExitStack() as threads:
        healed = store_of(library)
        healing = threads.enter_context(
            healer_of(library, healed, weights, settings.heal_images, settings.heal_seconds)
        )
        coordinator = Coordinator(library, weights, settings.voting, healed=healed, healer=healing)
        if healing is not None:
            healing.start()  # its images are read before the first device waits
        metrics = Metrics(library.statistics, None if healing is None else lambda: healing.statistics)

        def workers(count: int) -> Workers:
            return Workers(threads.enter_context(ThreadPoolExecutor(count)))

        calls = Calls(access, settings.limits, workers(DOORKEEPERS), workers(WORKERS), metrics)
        devices = DeviceService(
            coordinator, library.weights_digest, spool, settings.limits, workers(CUTTERS)
        )
        calls.add(*devices.methods(), *OperatorService(library).methods())
        server = grpc.aio.server(options=_options())
        server.add_generic_rpc_handlers((calls,))
        health = _add_health_and_reflection(server)
        port = _listen(server, settings)
        stop_metrics = _serve_metrics(settings.metrics_address, metrics)
        try:
            await server.start()
            logger.info("serving", address=settings.address, port=port, entries=len(library))
            try:
                yield port
            finally:
                logger.info("stopping", grace_seconds=settings.grace_seconds)
                health.end()
                if healing is not None:
                    healing.close()  # who waits gets what is there
                await server.stop(settings.grace_seconds)
        finally:
            stop_metrics()
    logger.info("stopped")


def _options() -> Sequence[tuple[str, int]]:
    return (
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", 8 * 1024),
        ("grpc.absolute_max_metadata_size", 16 * 1024),
        ("grpc.max_concurrent_streams", 64),
        # Bit 0 is no compression: four compressed megabytes would be gigabytes before any limit.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # A second server on the same port would take half of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.max_connection_idle_ms", 300_000),
    )


def _listen(server: grpc.aio.Server, settings: ServeSettings) -> int:
    """Listen on every IP address of the host, which is resolved here, so that it is what was checked."""
    address = Address.read(settings.address, listening=True)
    credentials = None if settings.tls is None else settings.tls.credentials()
    port = address.port
    try:
        for place in (str(Address(host, port)) for host in _hosts_of(address)):
            if credentials is None:
                port = server.add_insecure_port(place)
            else:
                port = server.add_secure_port(place, credentials)
    except RuntimeError as error:
        raise InputError(
            f"{settings.address} cannot be listened on ({error}); give a free port of this machine"
        ) from error
    return port


def _hosts_of(address: Address) -> list[str]:
    """The IP addresses to listen on. A machine without IPv6 has no ::1, and `localhost` all the same."""
    hosts = address.numeric_hosts()
    if hosts == [*LOOPBACK] and not _has_ipv6():
        hosts.remove("::1")
    return hosts


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def _add_health_and_reflection(server: grpc.aio.Server) -> Health:
    names = [service.full_name for service in SERVICES]
    health = Health(names)
    add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection([*names, HEALTH, reflection.SERVICE_NAME], server)
    return health


def _serve_metrics(address: str | None, metrics: Metrics) -> Callable[[], None]:
    if address is None:
        return lambda: None
    listening = Address.read(address, listening=True)
    try:
        server, thread = start_http_server(listening.port, listening.host, registry=metrics.registry)
    except (OSError, socket.gaierror) as error:
        raise InputError(
            f"metrics cannot be served at {address} ({error}); give a free port of this machine"
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def _allow_many_files() -> None:
    """As many open connections as the system lets this process have, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
