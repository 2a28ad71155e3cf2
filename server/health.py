"""Health: the standard service (grpc.health.v1), which needs no token, and so must cost nothing.

The one that comes with grpcio keeps whatever names it is asked for, and writes to watchers under a lock:
a watcher that takes nothing would keep the server from ever ending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

MAX_WATCHERS = 64


class Health(HealthServicer):
    """Says SERVING of these services, and of "", until `end`; then NOT_SERVING, and watching is over."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset({"", *services})
        self._ending = asyncio.Event()
        self._watchers = 0

    def end(self) -> None:
        """The server takes no more calls."""
        self._ending.set()

    async def Check(
        self, request: HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> HealthCheckResponse:
        """How a service is; NOT_FOUND for one that is not here."""
        await self._check_known(request, context)
        return self._response()

    async def Watch(self, request: HealthCheckRequest, context: grpc.aio.ServicerContext) -> None:
        """How a service is, now and at the end; RESOURCE_EXHAUSTED for one watcher too many."""
        await self._check_known(request, context)
        if self._watchers >= MAX_WATCHERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_WATCHERS} watch already; use Check"
            )
        self._watchers += 1
        try:
            told = self._response()
            await context.write(told)
            await self._ending.wait()
            if told.status == HealthCheckResponse.SERVING:
                await context.write(self._response())
        finally:
            self._watchers -= 1

    def _response(self) -> HealthCheckResponse:
        ended = self._ending.is_set()
        return HealthCheckResponse(
            status=HealthCheckResponse.NOT_SERVING if ended else HealthCheckResponse.SERVING
        )

    async def _check_known(self, request: HealthCheckRequest, context: grpc.aio.ServicerContext) -> None:
        if request.service not in self._services:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:80]!r} here"
            )
