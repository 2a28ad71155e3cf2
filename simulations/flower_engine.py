"""Flower's simulation engine, in a process of its own, which can be ended with all that it started."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

from common.errors import MaskvoteError
from common.settings import DeviceSettings, FleetSettings
from simulations.worker_processes import begin_worker


def run_flower(
    fleet: FleetSettings,
    device: DeviceSettings,
    nodes: int,
    workers: int,
    ended: Callable[[int], None],
) -> None:
    """Serve this many devices, so many `workers` at a time; `ended` is told the node of each that ends.

    Stopped by Ctrl-C, or by any other error here, it ends at once: asked to stop, the engine would wait
    for its ServerApp, which waits for devices. What Flower's apps raise of ours is raised here.
    RuntimeError where the engine fails; it has written its traceback to stderr.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    engine = context.Process(target=_engine, args=(fleet, device, nodes, workers, sender))
    engine.start()
    sender.close()
    try:
        while (told := _received(receiver)) is not None:
            if isinstance(told, MaskvoteError):
                raise told
            ended(told)
        engine.join()
    except BaseException:
        engine.kill()
        # Ray's processes would take a minute to notice that.
        with suppress(ProcessLookupError):  # it had not yet made its group
            os.killpg(engine.ident or 0, signal.SIGKILL)
        engine.join()
        raise
    if engine.exitcode:
        raise RuntimeError(
            f"Flower's engine ended with exit status {engine.exitcode}; its error is above"
        )


def _received(receiver: Connection) -> int | MaskvoteError | None:
    try:
        return receiver.recv()
    except EOFError:
        return None


def _engine(
    fleet: FleetSettings, device: DeviceSettings, nodes: int, workers: int, sender: Connection
) -> None:
    os.setsid()
    begin_worker(leads_group=True)
    # Ray tells its actors' threads by the environment.
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    from flwr.simulation import run_simulation

    from client.flower_app import client_app
    from server.fleet_report import DeviceOutcome
    from server.flower_app import server_app

    def hear(outcome: DeviceOutcome) -> None:
        if outcome.ended:
            sender.send(outcome.node)

    logging.getLogger("flwr").setLevel(logging.ERROR)
    try:
        run_simulation(
            server_app(fleet, watch=hear),
            client_app(device),
            num_supernodes=nodes,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {
                    "num_cpus": workers,
                    "logging_level": logging.ERROR,
                    "log_to_driver": False,
                },
            },
        )
    except MaskvoteError as error:
        sender.send(error)
    finally:
        sender.close()
