"""The Flower door of a device: it answers what the server asks, first for its task, then to adapt.

Each message may come to a new process, so what the first one leaves for the second is kept outside.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from client.adapt import adapt_assignment, describe, generator_of
from client.disclosure import warning_of
from client.export import save_network
from common.backbone import Backbone
from common.envelope import seal, unseal
from common.errors import InputError, MaskvoteError, MismatchError, TaskDataError
from common.exchange import Offer
from common.files import Data
from common.image_folders import subfolders
from common.memory_limit import PIXEL_BYTES, MemoryLimit
from common.proto_codec import (
    REQUEST_ID_BYTES,
    decode_assignment,
    decode_offer,
    encode_contribution,
    encode_task_description,
)
from common.record_codec import Measured, message_of, pack, payload_of
from common.settings import DeviceSettings, device_settings
from common.task_data import Task, load_folder
from common.tuning_file import TuningFile

__all__ = ["DeviceSettings", "app", "client_app"]

# A child of Flower's own logger, so that it goes where a SuperNode's log goes.
logger = logging.getLogger("flwr.maskvote")

STALE_SECONDS = 7 * 86_400.0
"""After which an offer that was kept is freed: its run has ended without coming back to this device."""


def client_app(settings: DeviceSettings | None = None) -> ClientApp:
    """The app of a device; without settings it reads those of its run. Its node's own win over both.

    A device that cannot do what it is asked replies with an error whose reason is one sentence; what
    is wrong with its images is said in its own log alone, as that names files and classes.
    """
    app = ClientApp()

    @app.query("signature")
    def signature(message: Message, context: Context) -> Message:
        return _reply(_describe_task, message, context, settings)

    @app.train("adapt")
    def adapt(message: Message, context: Context) -> Message:
        return _reply(_adapt_to_task, message, context, settings)

    return app


class _Device:
    """Where one device is, between two messages: its settings, its data, and the offer it was made."""

    def __init__(self, context: Context, given: DeviceSettings | None) -> None:
        self._context = context
        self.settings, self.node = device_settings(context.run_config, context.node_config, given)
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)

    def task(self, backbone: Backbone) -> Task:
        """The device's task: its own directory, or its partition's of a directory of tasks."""
        limit = self.settings.fine_tuning.max_memory
        pixels = PIXEL_BYTES if limit is None else MemoryLimit(limit).pixel_bytes
        return load_folder(self.node.data_path or self._partition(), backbone, pixels)

    def _partition(self) -> Path:
        tasks, number = self.settings.data, self.node.partition_id
        if tasks is None or number is None:
            raise InputError(
                "this device has no data; start its SuperNode with --node-config "
                "'data-path=\"DIRECTORY\"', or simulate with a directory of tasks as `data`"
            )
        folders = subfolders(tasks) if tasks.is_dir() else []
        if not 0 <= number < len(folders):
            raise InputError(
                f"{tasks} has {len(folders)} task directories and none for partition {number}; "
                "add some, or simulate fewer nodes"
            )
        return folders[number]

    def generator(self) -> torch.Generator:
        """Randomness that depends on the run's seed and the device, not on when it is its turn."""
        place = self.node.data_path or f"partition {self.node.partition_id}"
        return generator_of(self.settings.seed, place)

    def keep(self, request_id: str, offer: bytes, probe: Data) -> None:
        """Keep for the next message what was asked for, and on what offer."""
        message = bytes.fromhex(request_id) + offer
        if self._kept_file is not None:
            _free_stale(self._kept_file.parent)
            seal(self._kept_file, message, probe)
        else:
            self._context.state = pack(message, probe)

    def kept(self) -> tuple[str, Offer]:
        """The request id and the offer of the message before."""
        state, file = self._context.state, self._kept_file
        if not (state if file is None else file.exists()):
            raise InputError("nothing is kept of an offer here; ask this device for its signature first")
        message, probe = unseal(file) if file is not None else (message_of(state), payload_of(state))
        return message[:REQUEST_ID_BYTES].hex(), decode_offer(message[REQUEST_ID_BYTES:], probe)

    def forget(self) -> None:
        """Free what was kept."""
        if self._kept_file is not None:
            self._kept_file.unlink(missing_ok=True)
        if self.tuning_file is not None:
            self.tuning_file.remove()
        self._context.state = RecordDict()

    @property
    def tuning_file(self) -> TuningFile | None:
        """Where tuning keeps how far it has come, where the node has a directory for that."""
        directory = self.node.state_dir
        return None if directory is None else TuningFile(directory / f"{self._context.run_id}.tuning")

    @property
    def _kept_file(self) -> Path | None:
        directory = self.node.state_dir
        return None if directory is None else directory / f"{self._context.run_id}.offer"


def _free_stale(directory: Path) -> None:
    for file in (*directory.glob("*.offer"), *directory.glob("*.tuning")):
        if time.time() - file.stat().st_mtime > STALE_SECONDS:
            file.unlink(missing_ok=True)


def _describe_task(content: RecordDict, device: _Device) -> RecordDict:
    """Offer -> task description, under a request id that nobody can guess."""
    offered, probe = message_of(content), payload_of(content)
    offer = decode_offer(offered, probe)
    settings, request_id = device.settings, secrets.token_hex(REQUEST_ID_BYTES)
    task = device.task(offer.backbone)
    if task.left_out:
        logger.warning("%s", task.left_out)
    description = describe(
        offer,
        task,
        settings.budget,
        settings.method,
        request_id,
        settings.privacy,
        settings.fine_tuning.max_memory,
    )
    if warning := warning_of(description, settings.privacy):
        logger.warning("%s", warning)
    device.keep(request_id, offered, probe)
    return pack(encode_task_description(description))


def _adapt_to_task(content: RecordDict, device: _Device) -> RecordDict:
    """Assignment -> contribution, with what was measured on the way."""
    request_id, offer = device.kept()
    assignment = decode_assignment(message_of(content), payload_of(content), offer.structure)
    if assignment.request_id != request_id:
        raise MismatchError(
            f"the assignment answers {assignment.request_id}, this device asked as {request_id}; "
            "ask it for its signature again"
        )
    task, settings = device.task(offer.backbone), device.settings
    adapted, contribution = adapt_assignment(
        assignment,
        task,
        settings.fine_tuning,
        device.generator(),
        evaluate_at=settings.evaluate_at,
        file=device.tuning_file,
    )
    if adapted.kept < adapted.iterations:
        logger.info("the network after %d of %d iterations was kept", adapted.kept, adapted.iterations)
    for remark in adapted.remarks:
        logger.info("%s", remark)
    if device.node.network_path is not None:
        mask = adapted.pruned.mask.digest
        save_network(device.node.network_path, adapted.network, offer.backbone, task.classes, mask)
    device.forget()
    measured = Measured(
        adapted.accuracies,
        adapted.seconds,
        parameters=sum(parameter.numel() for parameter in adapted.network.parameters()),
        partition=device.node.partition_id,
    )
    return pack(encode_contribution(contribution), measured=measured)


def _reply(
    step: Callable[[RecordDict, _Device], RecordDict],
    message: Message,
    context: Context,
    settings: DeviceSettings | None,
) -> Message:
    try:
        return Message(step(message.content, _Device(context, settings)), reply_to=message)
    except TaskDataError as error:
        logger.error("%s", error)
        reason = "the images of this device's task cannot be used; its own log says why"
    except MaskvoteError as error:
        reason = str(error)
    # Raised, the sentence would arrive inside a traceback, and another one on each engine.
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


app = client_app()
"""What Flower runs on a device."""
