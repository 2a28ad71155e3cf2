"""A gRPC server on the loopback, in a thread of the test's own process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from common.backbone import Weights
from common.exchange import Limits
from server.library import Library
from server.serving import ServeSettings, serving

PLENTY = Limits(calls_per_minute=10**6, burst=10**6, concurrent_calls=1000, bytes_per_minute=4 * 10**9)


@contextmanager
def running_server(
    library: Library, weights: Weights, settings: ServeSettings | None = None
) -> Iterator[int]:
    """The port of a server that runs until the context is left; by default it takes anybody, any time."""
    settings = settings or ServeSettings(
        address="127.0.0.1:0", anonymous=True, limits=PLENTY, grace_seconds=5
    )
    if settings.address == ServeSettings.address:
        settings = replace(settings, address="127.0.0.1:0")
    started, ports, errors = threading.Event(), [], []
    loop = asyncio.new_event_loop()
    told = asyncio.Event()

    async def serve() -> None:
        async with serving(library, weights, settings) as port:
            ports.append(port)
            started.set()
            await told.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:
            errors.append(error)
        finally:
            started.set()
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    if errors:
        thread.join()
        raise errors[0]
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(told.set)
        thread.join()
    if errors:
        raise errors[0]
