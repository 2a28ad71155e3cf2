"""The gRPC door for devices: decode, call the coordinator, encode. protos/devices.proto says the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING

from common.exchange import BudgetLimits, Limits, Terms
from common.grpc_codec import (
    DEVICES,
    PART_BYTES,
    Announced,
    Resume,
    decode_fetch_probe,
    decode_fetch_subnetwork,
    encode_announcement,
    encode_part,
    encode_terms,
)
from common.mask import Mask
from common.proto_codec import (
    check_at_most,
    decode_contribution,
    decode_task_description,
    encode_choice,
    encode_offer,
    encode_receipt,
)
from common.structure import Structure
from server.grpc_calls import Call, Method, Workers, unary
from server.spool import Reading, Spool

if TYPE_CHECKING:
    from server.coordinator import Coordinator

PROBE = "probe"
"""The key of the probe's file in the spool; those of sub-networks are their editions."""


class DeviceService:
    """Serves devices from one coordinator; files that are sent lie in the spool."""

    def __init__(
        self,
        coordinator: Coordinator,
        weights_digest: str,
        spool: Spool,
        limits: Limits,
        cutters: Workers,
    ) -> None:
        self._coordinator = coordinator
        self._spool = spool
        self._cutters = cutters
        offer = coordinator.offer()
        message, self._probe = encode_offer(offer)
        self._structure = offer.structure
        terms = Terms(
            model=offer.backbone.model,
            weights_digest=weights_digest,
            budgets=smallest_budgets(offer.structure),
            limits=limits,
            server_version=version("maskvote"),
        )
        self._welcome = encode_terms(message, terms)

    def methods(self) -> list[Method]:
        """The methods of the service."""
        serving = {
            "GetOffer": self._get_offer,
            "FetchProbe": self._fetch_probe,
            "Assign": unary(self._assign),
            "FetchSubNetwork": self._fetch_subnetwork,
            "Record": unary(self._record),
        }
        return [Method(DEVICES.methods_by_name[name], "device", serve) for name, serve in serving.items()]

    async def _get_offer(self, call: Call) -> None:
        await call.message()
        await call.send(self._welcome)

    def _assign(self, message: bytes, call: Call) -> bytes:
        task = decode_task_description(message)
        call.facts["request"] = task.request_id
        return encode_choice(self._coordinator.choose(task, call.caller.name))

    def _record(self, message: bytes, call: Call) -> bytes:
        contribution = decode_contribution(message, self._structure)
        call.facts["request"] = contribution.request_id
        return encode_receipt(self._coordinator.record(contribution, call.caller.name))

    async def _fetch_probe(self, call: Call) -> None:
        resume = decode_fetch_probe(await call.message())
        await self._send(call, resume, self._open_probe)

    async def _fetch_subnetwork(self, call: Call) -> None:
        request_id, resume = decode_fetch_subnetwork(await call.message())
        call.facts["request"] = request_id
        asked = await self._cutters.run(self._coordinator.asked, request_id, call.caller.name)
        mask = asked.mask
        # Who has begun to receive what there is has waited, and would begin anew with a better one.
        if resume is None or not await self._cutters.run(self._is_current, resume, mask):
            await self._wait_for_healing(mask, asked.description.budget.wait_seconds, call)
        await self._send(call, resume, lambda: self._open_subnetwork(mask))

    async def _wait_for_healing(self, mask: Mask, seconds: float, call: Call) -> None:
        """Wait, without a thread, for as long as the device is ready to, or until it hangs up."""
        healing = self._coordinator.begin_healing(mask, seconds)
        if healing is not None:
            began = time.monotonic()
            await asyncio.wrap_future(healing)
            call.facts["waited_milliseconds"] = round(1000 * (time.monotonic() - began), 2)

    def _open_probe(self) -> Reading:
        return self._spool.open(PROBE, lambda: self._probe)

    def _open_subnetwork(self, mask: Mask) -> Reading:
        """The best network that there is now; a healed backbone may have to be read for it."""
        key = self._coordinator.edition(mask)
        return self._spool.open(key, lambda: self._coordinator.cut(mask).to_bytes())

    def _is_current(self, resume: Resume, mask: Mask) -> bool:
        """Whether it is of the best network that there is now."""
        with self._open_subnetwork(mask) as payload:
            return resume.sha256 == payload.announced.sha256

    async def _send(self, call: Call, resume: Resume | None, opened: Callable[[], Reading]) -> None:
        """Send a payload in parts, from where its receiver has got to."""
        with await self._cutters.run(opened) as payload:
            announced = payload.announced
            offset = _start(announced, resume)
            await call.send(encode_announcement(announced, offset))
            while part := payload.read(offset, PART_BYTES):
                await call.send(encode_part(part))
                offset += len(part)


def _start(announced: Announced, resume: Resume | None) -> int:
    """The byte to send from: where a receiver of this very payload has got to, or the first."""
    if resume is None or resume.sha256 != announced.sha256:
        return 0
    check_at_most(resume.offset, announced.size, "bytes of this payload")
    return resume.offset


def smallest_budgets(structure: Structure) -> BudgetLimits:
    """What a budget is at least: every group keeps one unit. Parameters grow evenly with the classes."""
    none, one = (structure.parameters(structure.smallest, classes) for classes in (0, 1))
    return BudgetLimits(
        keep_ratio=structure.share(structure.smallest),
        parameters=none,
        parameters_per_class=one - none,
    )
