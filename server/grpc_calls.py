"""Calls: what every gRPC call goes through, whatever it asks for.

Who calls is found out, unless their host guesses tokens, then whether they may and how much, and only
then is a message read: in time, and no larger than the limit. Errors become statuses, and every call a
line of the log and a few numbers.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor
from grpc import StatusCode

from common.errors import InputError, MaskvoteError, UnavailableError
from common.exchange import Limits
from common.grpc_codec import AUTHORIZATION, full_name, status_of, trailing_metadata
from server.access import Access, check_role
from server.metrics import Metrics
from server.refusals import Refusals, host_of
from server.tokens import Caller, Role
from server.traffic import Traffic

CALL = "maskvote-call"
"""Trailing metadata: the call's name in the server's log."""

MAX_WAITING = 512
"""Jobs that workers have to do; whoever comes then is told to come again."""

STALLED_SECONDS = 600
"""How long a receiver may take for one part of a payload: half a kilobyte a second is enough."""

MAX_DETAILS_BYTES = 2000
"""Of an error's sentence: it travels in a header of 8 kB, three characters for each byte."""

Result = TypeVar("Result")

logger = structlog.get_logger("maskvote")


class Workers:
    """Threads for work that would hold up the event loop: decoding, voting, cutting, the library."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._waiting = 0

    async def run(self, job: Callable[..., Result], *arguments: Any) -> Result:
        """What a job returns. UnavailableError if too many wait; one that is given up never starts."""
        if self._waiting >= MAX_WAITING:
            raise UnavailableError(
                f"{self._waiting} calls wait to be worked on already; call again later", retry_seconds=2
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, job, *arguments)
        finally:
            self._waiting -= 1


@dataclass
class Call:
    """One call, to the method that serves it."""

    caller: Caller
    workers: Workers
    facts: dict[str, Any]
    """What the log shall say of it; `request` above all."""
    _context: grpc.aio.ServicerContext
    _messages: AsyncIterator[bytes]
    _receive_seconds: float
    _charge: Callable[[int], None]
    received: int = 0
    sent: int = 0

    async def message(self) -> bytes:
        """The next message. InputError if there is none, TimeoutError if it takes too long."""
        async with asyncio.timeout(self._receive_seconds):
            try:
                message = await anext(self._messages)
            except StopAsyncIteration:
                raise InputError("the call has no message; send one") from None
        self._charge(len(message))
        self.received += len(message)
        return message

    async def messages(self) -> AsyncIterator[bytes]:
        """All messages that are still to come. Operators alone send them, as much as they like."""
        while True:
            async with asyncio.timeout(self._receive_seconds):
                try:
                    message = await anext(self._messages)
                except StopAsyncIteration:
                    return
            self.received += len(message)
            yield message

    async def send(self, message: bytes) -> None:
        """Send one message; TimeoutError if the receiver does not take it."""
        async with asyncio.timeout(STALLED_SECONDS):
            await self._context.write(message)
        self.sent += len(message)


Serve = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True)
class Method:
    """A method of a service: who may call it, and what serves it."""

    descriptor: MethodDescriptor
    role: Role
    serve: Serve


def unary(answer: Callable[[bytes, Call], bytes]) -> Serve:
    """Serve a method that answers one message with one; `answer` runs in a worker."""

    async def serve(call: Call) -> None:
        await call.send(await call.workers.run(answer, await call.message(), call))

    return serve


@dataclass
class Calls(grpc.GenericRpcHandler):
    """All methods, by their path on the wire."""

    access: Access
    limits: Limits
    doorkeepers: Workers
    workers: Workers
    metrics: Metrics
    methods: Mapping[str, Method] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._traffic = Traffic(self.limits)
        self._refusals = Refusals()

    def add(self, *methods: Method) -> None:
        """Serve these methods too."""
        self.methods = {**self.methods, **{full_name(m.descriptor): m for m in methods}}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a method; None for one that is not ours."""
        method = self.methods.get(details.method)
        if method is None:
            return None

        # On the wire, one message is a stream of one. As a stream it is read when we say so: a unary
        # handler would be called with the message, before anybody asked who sent it.
        async def serve(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
            await self._serve(method, messages, context)

        return grpc.stream_stream_rpc_method_handler(serve)

    async def _serve(
        self, method: Method, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> None:
        name = method.descriptor.name
        facts: dict[str, Any] = {"call": secrets.token_hex(8), "method": name, "peer": context.peer()}
        call: Call | None = None
        status, error = StatusCode.OK, None
        began = time.perf_counter()
        context.set_trailing_metadata(((CALL, facts["call"]),))
        try:
            with self.metrics.running(name):
                caller = await self._caller(context)
                facts["caller"] = caller.name
                check_role(caller, method.role)
                with self._traffic.admitted(caller.name or host_of(context.peer())) as charge:
                    patience = self.limits.receive_seconds
                    call = Call(caller, self.workers, facts, context, messages, patience, charge)
                    await method.serve(call)
        except MaskvoteError as refusal:
            status, error = status_of(refusal), refusal
        except TimeoutError:
            status = StatusCode.DEADLINE_EXCEEDED
            error = UnavailableError(
                "the call was given up, as nothing came, or nothing was taken, for too long; call again"
            )
        except asyncio.CancelledError:
            status = StatusCode.CANCELLED
            raise
        except grpc.aio.BaseError:  # there is nobody any more to read from or to write to
            status = StatusCode.CANCELLED
        except Exception:
            status = StatusCode.INTERNAL
            error = MaskvoteError(f"a fault of the server; its log has it as call {facts['call']}")
            with suppress(OSError, ValueError):
                logger.exception("fault", **facts)
        finally:
            seconds = time.perf_counter() - began
            received, sent = (call.received, call.sent) if call is not None else (0, 0)
            self.metrics.ended(name, status.name, seconds, received, sent)
            # Those who are turned away before they are looked at leave no line: a flood fills no disk.
            if "caller" in facts or not isinstance(error, UnavailableError):
                with suppress(OSError, ValueError):  # a log that cannot be written ends no call
                    logger.info(
                        "call",
                        **facts,
                        status=status.name,
                        milliseconds=round(1000 * seconds, 2),
                        received=received,
                        sent=sent,
                        **({} if error is None else {"error": str(error)}),
                    )
        if error is not None:
            trailing = ((CALL, facts["call"]), *trailing_metadata(error))
            await context.abort(status, _details(error), trailing)

    async def _caller(self, context: grpc.aio.ServicerContext) -> Caller:
        metadata = dict(context.invocation_metadata() or ())
        names = context.auth_context().get("x509_common_name", ())
        token = metadata.get(AUTHORIZATION)
        with self._refusals.counted(host_of(context.peer()), token):
            if token is None:
                return self.access.caller(metadata, list(names))
            return await self.doorkeepers.run(self.access.caller, metadata, list(names))


def _details(error: MaskvoteError) -> str:
    """An error's sentence as a header may carry it: gRPC drops a call whose headers are too large."""
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return text.encode()[:MAX_DETAILS_BYTES].decode(errors="ignore")
