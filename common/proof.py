"""Proof: which groups of a structure can be cut from a backbone. What cannot be shown is frozen.

Discovery reasons from a graph; here the networks themselves are asked, on random weights. With a
group cut, the network has to give what the masked backbone gives, and to be trainable.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call

from common.backbone import Backbone, Weights
from common.mask import Mask
from common.rebuild import rebuild
from common.structure import Group, Structure
from common.subnetwork import cut, masked
from common.system_errors import pass_on

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-8}
"""How far the cut network's output may lie from the masked one's, relative to its largest value."""
LEAST_EFFECT = 10.0
"""How many tolerances cutting has to change: below, that two networks agree shows nothing."""
ALONE_KEEP = 0.5
TOGETHER_KEEP = (0.5, 0.1)

Outcome = Literal["equal", "runs", "differs", "no effect", "fails", "unchecked"]
PROVED: tuple[Outcome, ...] = ("equal", "runs")


@dataclass(frozen=True)
class Verdict:
    """What came of cutting a group.

    "equal" where it is exact, and "runs" where it is not, are proofs; everything else freezes it,
    for `reason`. `difference` is how far outputs lay apart (see `TOLERANCE`), NaN where there is none.
    """

    group: str
    outcome: Outcome
    difference: float = float("nan")
    reason: str = ""


@dataclass(frozen=True)
class Proof:
    """A verdict on every group of a structure, in its order."""

    verdicts: tuple[Verdict, ...]

    @property
    def frozen(self) -> dict[str, str]:
        """The groups that are not proved, each with why."""
        return {v.group: f"{v.outcome}: {v.reason}" for v in self.verdicts if v.outcome not in PROVED}

    def proved(self, structure: Structure) -> Structure:
        """The structure without what is not proved; all that is left has also been cut at once."""
        return structure.without(self.frozen)


def prove(
    backbone: Backbone,
    structure: Structure,
    *,
    seed: int = 0,
    seconds: float = 600.0,
    watch: Callable[[int, int], None] | None = None,
) -> Proof:
    """A proof for every group: cut alone, then together with all that passed.

    Masks, weights and the one image are drawn from the seed. After so many seconds no further group
    is checked: those are frozen for that. Whatever a network raises freezes a group; nothing is raised.
    `watch` is called with groups done and groups in all.
    """
    deadline = time.monotonic() + seconds
    trial = _Trial(backbone, structure, seed)
    verdicts: dict[str, Verdict] = {}
    for done, group in enumerate(structure.groups):
        in_time = time.monotonic() < deadline
        verdicts[group.name] = trial.alone(group) if in_time else _late(group, seconds)
        if watch is not None:
            watch(done + 1, len(structure.groups))
    while passed := [g for g in structure.groups if verdicts[g.name].outcome in PROVED]:
        verdict = trial.together(passed)
        if verdict.outcome in PROVED:
            break
        if time.monotonic() < deadline:
            culprit = trial.shortest_failing(passed)[-1].name
            verdicts[culprit] = replace(verdict, group=culprit)
        else:
            verdicts.update((group.name, _late(group, seconds)) for group in passed)
    return Proof(tuple(verdicts.values()))


def _late(group: Group, seconds: float) -> Verdict:
    return Verdict(group.name, "unchecked", reason=f"the proof took longer than {seconds:g} seconds")


class _Trial:
    """A backbone on random weights, and one image: what masks are tried on."""

    def __init__(self, backbone: Backbone, structure: Structure, seed: int) -> None:
        self._backbone = backbone
        self._structure = structure
        self._generator = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = timm.create_model(
                backbone.model, num_classes=backbone.num_classes, **backbone.arguments
            ).eval()
            images = torch.randn(2, *backbone.input_size)
            _randomise(network, images)
        self._reference = _Reference(network, dict(network.state_dict()), images[:1])
        self._precise: _Reference | None = None

    def alone(self, group: Group) -> Verdict:
        """The verdict on a group of which half is cut, and nothing else."""
        if group.units == 1:
            return Verdict(group.name, "no effect", reason="of its one unit none can be cut")
        return self._compare(self._mask([group], ALONE_KEEP), group.exact, group.name)

    def together(self, groups: Sequence[Group]) -> Verdict:
        """The verdict on cutting groups at once: the exact ones must be equal, all must run."""
        exact = [group for group in groups if group.exact]
        verdict = Verdict("", "runs")
        for keep in TOGETHER_KEEP:
            if exact:
                verdict = self._compare(self._mask(exact, keep), True, trains=True)
            if verdict.outcome in PROVED and len(exact) < len(groups):
                verdict = self._compare(self._mask(groups, keep), False, trains=True)
            if verdict.outcome not in PROVED:
                return replace(verdict, reason=f"with other groups cut as well, {verdict.reason}")
        return verdict

    def shortest_failing(self, groups: Sequence[Group]) -> Sequence[Group]:
        """The groups, of which all at once fail, up to one with which they first do (by bisection)."""
        good, bad = 0, len(groups)
        while bad - good > 1:
            middle = (good + bad) // 2
            passes = self.together(groups[:middle]).outcome in PROVED
            good, bad = (middle, bad) if passes else (good, middle)
        return groups[:bad]

    def _mask(self, groups: Sequence[Group], keep: float) -> Mask:
        rows = {g.name: np.ones(g.units, dtype=bool) for g in self._structure.groups}
        for group in groups:
            count = max(1, round(keep * group.units))
            rows[group.name] = self._generator.permutation(group.units) < count
        return Mask.of(self._structure, rows)

    def _compare(self, mask: Mask, exact: bool, group: str = "", trains: bool = False) -> Verdict:
        """Cut network against masked one; where it `trains`, one backward pass through the cut one.

        What single precision leaves open is asked again in double.
        """
        verdict = self._compare_in(self._reference, mask, exact, group, trains)
        if verdict.outcome in ("differs", "no effect"):
            if self._precise is None:
                self._precise = self._reference.double()
            precise = self._compare_in(self._precise, mask, exact, group, False)
            verdict = verdict if precise.outcome == "fails" else precise
        return verdict

    def _compare_in(
        self, reference: _Reference, mask: Mask, exact: bool, group: str, trains: bool
    ) -> Verdict:
        tolerance = TOLERANCE[reference.dtype]
        try:
            touched = reference.touched_by(mask)
            weights = {**reference.weights, **cut(touched, mask)}
            network = rebuild(self._backbone, weights).to(reference.dtype)
            with torch.set_grad_enabled(trains):
                output = network(reference.image)
                if trains:
                    output.square().mean().backward()
        except Exception as error:  # of any kind: timm's forward code is not ours
            pass_on(error)
            lines = str(error).strip().splitlines() or [""]
            raised = f"{type(error).__name__}: {lines[0][:200]}"
            return Verdict(group, "fails", reason=f"the cut network raises {raised}")
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        if not all(torch.isfinite(tensor).all() for tensor in (output, *gradients)):
            return Verdict(group, "fails", reason="the cut network gives NaN or infinity")
        expected = reference.output(masked(touched, mask))
        difference = _difference(output.detach(), expected)
        effect = _difference(expected, reference.whole)
        if not effect >= LEAST_EFFECT * tolerance:
            return Verdict(group, "no effect", difference, f"cutting changes only {effect:.0e}")
        if not exact:
            return Verdict(group, "runs", difference)
        if difference <= tolerance:
            return Verdict(group, "equal", difference)
        return Verdict(group, "differs", difference, f"outputs lie {difference:.0e} apart")


class _Reference:
    """The uncut network in one precision, and what it gives for the image."""

    def __init__(self, network: nn.Module, weights: Weights, image: Tensor) -> None:
        self._network = network
        self.weights = weights
        self.image = image
        self.dtype = image.dtype
        self.whole = self.output(weights)

    def touched_by(self, mask: Mask) -> dict[str, Tensor]:
        """The tensors that cutting changes: copying all others for every group would cost the most."""
        cut_groups = [g for g in mask.structure.groups if not mask[g.name].all()]
        names = {member.tensor for group in cut_groups for member in group.members}
        return {name: tensor for name, tensor in self.weights.items() if name in names}

    def output(self, weights: Weights) -> Tensor:
        """What the uncut network gives with some other weights."""
        with torch.no_grad():
            return functional_call(self._network, dict(weights), (self.image,), tie_weights=False)

    def double(self) -> _Reference:
        """The same in double precision."""
        network = copy.deepcopy(self._network).double()
        return _Reference(network, dict(network.state_dict()), self.image.double())


def _difference(output: Tensor, reference: Tensor) -> float:
    return float((output - reference).abs().max() / reference.abs().max().clamp(min=1e-12))


def _randomise(network: nn.Module, images: Tensor) -> None:
    """Let every part matter: no norm is the identity, no branch starts at zero, attention attends.

    With timm's own start attention is all but uniform, and it does not show what heads are made of.
    Batch norms take their statistics from the images, so that no activation vanishes or explodes.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5).add_(0.2 * torch.randn_like(parameter))
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                nn.init.kaiming_normal_(module.weight)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train().momentum = 1.0
        network(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum
            if norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.add_(
                    0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
                )
                norm.running_var.mul_(torch.rand_like(norm.running_var) + 0.5)
