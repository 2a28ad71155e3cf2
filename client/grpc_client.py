"""The gRPC door of a device: a coordinator elsewhere. protos/devices.proto says what is called."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
from grpc import StatusCode

from client.adapt import check_timm
from client.download import DamagedDownload, Download
from client.patience import DEFAULT_SECONDS, Patience, Tell
from client.probe_cache import ProbeCache
from common.errors import MaskvoteError, MismatchError, UnavailableError
from common.exchange import Assignment, Contribution, Offer, Receipt, TaskDescription, Terms
from common.grpc_channel import Connection, refusal_of
from common.grpc_codec import (
    DEVICES,
    ERROR_KIND,
    Announced,
    Resume,
    announced_probe,
    decode_announcement,
    decode_part,
    decode_terms,
    encode_fetch_probe,
    encode_fetch_subnetwork,
    full_name,
)
from common.handshake import fault_of_handshake
from common.proto_codec import (
    decode_assignment,
    decode_offer,
    decode_receipt,
    encode_contribution,
    encode_task_description,
    parsed_as,
    refusing,
    structure_in,
    with_subnetwork,
)
from common.structure import Structure
from protos import maskvote_pb2

__all__ = ["Connection", "RemoteCoordinator"]

ANSWER_SECONDS = 60
"""For calls of one message."""
STALLED_SECONDS = 30.0
"""How long a stream may bring nothing before it is given up, and gone on with in another."""

CHANNEL_OPTIONS = (
    ("grpc.keepalive_timeout_ms", 10_000),
    # As often as is needed: a server may think for longer than two pings take.
    ("grpc.http2.max_pings_without_data", 0),
    # How often to try is our own patience's to say.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # What arrives ahead of its reader is lost with the connection: at most one part shall be.
    ("grpc.http2.bdp_probe", 0),
)

AGAIN = {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED}
"""Statuses after which the same call may succeed."""
BROKEN = {StatusCode.INTERNAL, StatusCode.UNKNOWN}
"""Statuses after which it may, unless they are the server's own: what a proxy says that lost it."""

Transfer = Callable[[str, int, int], None]
"""Called with what is downloaded ("probe" or "network"), the bytes that are there, and those in all."""

Result = TypeVar("Result")


class RemoteCoordinator:
    """Satisfies `Coordinator`. Raises what the server's would, and UnavailableError.

    A call that fails for want of a server or a network is made again until it has failed for
    `patience_seconds`, which every part of a download renews; `tell` hears why. What is downloaded lies
    in the directory `downloads`, where another process finds it and goes on. With `known`, the offer of
    an earlier time, MismatchError is raised if the server's is another one by now. A probe that is in
    `probes` is not downloaded. For one thread.
    """

    def __init__(
        self,
        connection: Connection,
        downloads: Path,
        *,
        known: Offer | None = None,
        probes: ProbeCache | None = None,
        patience_seconds: float = DEFAULT_SECONDS,
        stalled_seconds: float = STALLED_SECONDS,
        transfer: Transfer = lambda what, done, total: None,
        tell: Tell = lambda sentence: None,
    ) -> None:
        self._connection = connection
        self._downloads = downloads
        self._known = known
        self._probes = probes or ProbeCache(None)
        self._patience = Patience(patience_seconds, tell)
        self._stalled_seconds = stalled_seconds
        self._transfer = transfer
        self._channel = connection.open(*CHANNEL_OPTIONS)
        self._welcome: tuple[bytes, Terms, Structure] | None = None
        self._offer: Offer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what is downloaded stays."""
        self._channel.close()

    @property
    def terms(self) -> Terms:
        """What the server says of itself beside its offer; it is asked once."""
        return self._welcomed()[1]

    def offer(self) -> Offer:
        """What the device needs before it asks; it is fetched once.

        MismatchError, before the probe is downloaded, if its backbone is another timm's than the one
        installed, or another one than `known`.
        """
        if self._offer is None:
            message, _, _ = self._welcomed()
            self._offer = decode_offer(message, self._probe(announced_probe(message)))
        return self._offer

    def assign(self, task: TaskDescription) -> Assignment:
        """A sub-network within the budget; asked again, the download goes on where it stopped."""
        _, _, structure = self._welcomed()
        choice = self._ask("Assign", encode_task_description(task))

        def request(resume: Resume | None) -> bytes:
            return encode_fetch_subnetwork(task.request_id, resume)

        with self._download(task.request_id, "network") as download:
            # A server that heals says nothing before it has the network, or the device's wait is over.
            wait = task.budget.wait_seconds
            announced = self._fetch("FetchSubNetwork", request, download, wait_seconds=wait)
            message = with_subnetwork(choice, announced.size, announced.sha256)
            assignment = decode_assignment(message, download.read(), structure)
        if assignment.request_id != task.request_id:
            raise MismatchError(
                f"the assignment answers {assignment.request_id}, asked was {task.request_id}; ask again"
            )
        return assignment

    def record(self, contribution: Contribution) -> Receipt:
        """Store a contribution; the same one again gives the same receipt."""
        return decode_receipt(self._ask("Record", encode_contribution(contribution)))

    def _welcomed(self) -> tuple[bytes, Terms, Structure]:
        """The offer's message without its probe, checked to be one that this device can take."""
        if self._welcome is None:
            message, terms = decode_terms(self._ask("GetOffer", b""))
            parsed, structure = _offered(message)
            self._check_known(structure, parsed.probe_digest.hex())
            check_timm(structure)
            self._welcome = message, terms, structure
        return self._welcome

    def _probe(self, announced: Announced) -> memoryview:
        """The probe's file: the one that was kept, or downloaded, and kept for the next time."""
        if (kept := self._probes.get(announced)) is not None:
            return kept
        with self._download("probe", "probe") as download:
            self._fetch("FetchProbe", encode_fetch_probe, download, announced)
            data = download.read()
        self._probes.put(announced, data)
        return data

    def _check_known(self, structure: Structure, probe: str) -> None:
        if self._known is None:
            return
        for what, known, offered in (
            ("structure", self._known.structure.digest, structure.digest),
            ("probe", self._known.probe.digest, probe),
        ):
            if known != offered:
                raise MismatchError(
                    f"{self._connection.address} offers {what} {offered}, this device began with "
                    f"{known}; go on with the server it began with, or begin anew in another place"
                )

    def _download(self, name: str, what: str) -> Download:
        return Download(self._downloads, name, lambda done, total: self._transfer(what, done, total))

    def _fetch(
        self,
        method: str,
        request: Callable[[Resume | None], bytes],
        download: Download,
        expected: Announced | None = None,
        wait_seconds: float = 0,
    ) -> Announced:
        """Download a payload, in as many streams as it takes, and once more if it is damaged."""

        def stream() -> Announced:
            before = download.size
            try:
                return self._stream(method, request, download, expected, wait_seconds)
            finally:
                if download.size > before:
                    self._patience.renew()

        try:
            return self._patiently(stream)
        except DamagedDownload:
            return self._patiently(stream)

    def _stream(
        self,
        method: str,
        request: Callable[[Resume | None], bytes],
        download: Download,
        expected: Announced | None,
        wait_seconds: float,
    ) -> Announced:
        call = self._channel.unary_stream(_path(method))(
            request(download.resume), metadata=self._connection.metadata
        )
        with _messages(call, self._stalled_seconds, wait_seconds) as messages:
            announced, offset = decode_announcement(next(messages, b""))
            if expected is not None and announced != expected:
                raise MismatchError(
                    f"the server announces a file of sha256 {announced.sha256}, and offered "
                    f"{expected.sha256}; fetch the offer again"
                )
            download.take(announced, offset, map(decode_part, messages))
        return announced

    def _ask(self, method: str, message: bytes) -> bytes:
        return self._patiently(
            lambda: self._channel.unary_unary(_path(method))(
                message, timeout=ANSWER_SECONDS, metadata=self._connection.metadata
            )
        )

    def _patiently(self, attempt: Callable[[], Result]) -> Result:
        """What an attempt gives, once one succeeds."""
        while True:
            try:
                result = attempt()
            except grpc.RpcError as error:
                self._patience.wait(self._worth_another(error))
                # What is left of the old channel may go on about a server that has come back since.
                self._channel.close()
                self._channel = self._connection.open(*CHANNEL_OPTIONS)
            else:
                self._patience.renew()
                return result

    def _worth_another(self, error: grpc.RpcError) -> MaskvoteError:
        """The error that a failed call tells of; raised here if another attempt would fail too."""
        address, status = self._connection.address, error.code()
        refusal = refusal_of(error, address)
        own = any(name == ERROR_KIND for name, _ in error.trailing_metadata() or ())
        broken = status in BROKEN and not own
        if not (status in AGAIN or broken or (own and isinstance(refusal, UnavailableError))):
            raise refusal from error
        if status is StatusCode.CANCELLED:
            return UnavailableError(f"{address} sent nothing for {self._stalled_seconds:g} seconds")
        if status is StatusCode.UNAVAILABLE and not own:
            fault = fault_of_handshake(self._connection, error.details() or "")
            if isinstance(fault, UnavailableError):
                return fault
            if fault is not None:
                raise fault from error
        return refusal


@refusing("offer")
def _offered(message: bytes) -> tuple[maskvote_pb2.Offer, Structure]:
    parsed = parsed_as(maskvote_pb2.Offer, message)
    return parsed, structure_in(parsed.structure)


@contextmanager
def _messages(call: Any, stalled_seconds: float, wait_seconds: float) -> Iterator[Iterator[bytes]]:
    """The messages of a call, each received while the one before is worked on; it ends with the context.

    Raises what the call does, and cancels it when nothing comes for so long; the first may take
    `wait_seconds` more.
    """
    received: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=1)

    def receive() -> None:
        try:
            for message in call:
                received.put(message)
            received.put(None)
        except Exception as error:
            received.put(error)

    def messages() -> Iterator[bytes]:
        message = _next(received, call, wait_seconds + stalled_seconds)
        while message is not None:
            if isinstance(message, Exception):
                raise message
            yield message
            message = _next(received, call, stalled_seconds)

    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    try:
        yield messages()
    finally:
        call.cancel()
        while receiver.is_alive():
            with suppress(queue.Empty):
                received.get(timeout=0.01)


def _next(
    received: queue.Queue[bytes | Exception | None], call: Any, stalled_seconds: float
) -> bytes | Exception | None:
    try:
        return received.get(timeout=stalled_seconds)
    except queue.Empty:
        call.cancel()
        return received.get()


def _path(method: str) -> str:
    return full_name(DEVICES.methods_by_name[method])
