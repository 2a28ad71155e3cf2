"""Tuning: a network is fine-tuned, its units are ranked meanwhile, and it is cut where stages say so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from common.backbone import Backbone
from common.deadline import Deadline
from common.fine_tune import FineTuneSettings, FineTuning, only_tuned
from common.images import LabelledImages
from common.importance import Taylor, rank
from common.mask import Mask, Scores
from common.pruning import Stage
from common.rebuild import rebuild
from common.subnetwork import cut

NETWORK, STEPS, KEPT, IMPORTANCE = "network.", "steps.", "kept", "importance"
"""Names of the tensors in `Tuning.stored`: two prefixes, and two of their own."""


class Tuning:
    """A network that is tuned in stages; its units are ranked by first-order Taylor, and it is cut.

    Ranked by the batches that it is tuned on, whose gradients are there anyway. Where only the head is
    tuned, the weights that read units have no gradients: a few more batches give them, without a step.

    It can be stored after any iteration, and goes on from there in another process: with the same images
    and settings it comes to the same network as if it had never stopped, but for rounding.
    """

    def __init__(
        self,
        network: nn.Module,
        backbone: Backbone,
        mask: Mask,
        images: LabelledImages,
        settings: FineTuneSettings,
        generator: torch.Generator,
        stages: Sequence[Stage],
    ) -> None:
        self.network, self.mask = network, mask
        """The network as it is, and the units that it holds."""
        self._backbone = backbone
        self._images = images
        self._settings = settings
        self._generator = generator
        self._stages = stages
        self._number = self._done_before = 0
        self._begin_stage()

    @property
    def done(self) -> int:
        """Iterations that are done."""
        return self._done_before + (0 if self._finished else self._steps.done)

    @property
    def at_final_size(self) -> bool:
        """Whether all cuts are made."""
        return all(stage.counts is None for stage in self._stages[self._number :])

    def run(
        self,
        *,
        deadline: Deadline | None = None,
        after_iteration: Callable[[int], None] | None = None,
    ) -> Scores:
        """Do all stages that are left; how the units that are held rank in the end.

        A deadline is shared out as the iterations are; all cuts are made in any case. `after_iteration`
        gets the iterations done. Raises Diverged.
        """
        scores: Scores = {}
        while not self._finished:
            self._run_stage(deadline, after_iteration)
            scores = self._ranked()
            self._end_stage(scores)
        return scores

    def scores(self) -> Scores | None:
        """How the units rank by the iterations of this stage; None where only the head is tuned."""
        return self._taylor.scores() if self._settings.tuned == "all" else None

    def stored(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What has to be kept to go on from here: tensors, which are not copied, and words."""
        total, observed = self._taylor.totals
        tensors = {f"{NETWORK}{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"{STEPS}{name}": tensor for name, tensor in self._steps.stored().items()}
        tensors |= {KEPT: torch.from_numpy(self.mask.kept.copy()), IMPORTANCE: total}
        place = {
            "stage": self._number,
            "done before": self._done_before,
            "done": self._steps.done,
            "observed": observed,
        }
        return tensors, {"tuning": json.dumps(place)}

    def go_on(self, tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> None:
        """Go on from what `stored` gave. KeyError, ValueError or an InputError for anything else."""
        place = json.loads(words["tuning"])
        self._number, self._done_before = int(place["stage"]), int(place["done before"])
        self.mask = Mask(self.mask.structure, tensors[KEPT].numpy())
        self.network = rebuild(self._backbone, _of(tensors, NETWORK), mask=self.mask)
        self._begin_stage()
        self._steps.go_on(int(place["done"]), _of(tensors, STEPS))
        self._taylor.totals = tensors[IMPORTANCE].clone(), int(place["observed"])

    @property
    def _finished(self) -> bool:
        return self._number == len(self._stages)

    def _begin_stage(self) -> None:
        stage = self._stages[self._number]
        settings = replace(self._settings, iterations=stage.iterations, final_rate=stage.final_rate)
        with only_tuned(self.network, self._backbone, settings.tuned):
            self._steps = FineTuning(self.network, self._images, settings, self._generator)
        self._taylor = Taylor(self.network, self.mask)

    def _run_stage(
        self, deadline: Deadline | None, after_iteration: Callable[[int], None] | None
    ) -> None:
        left = sum(stage.iterations for stage in self._stages[self._number :]) - self._steps.done
        here = self._stages[self._number].iterations - self._steps.done
        with only_tuned(self.network, self._backbone, self._settings.tuned):
            self._steps.run(
                # All of it is given on as it is: it may have begun in another process.
                deadline=deadline if deadline is None or here == left else deadline.part(here / left),
                after_backward=self._taylor.observe if self._settings.tuned == "all" else None,
                after_iteration=None if after_iteration is None else lambda _: after_iteration(self.done),
            )

    def _ranked(self) -> Scores:
        settings = self._settings
        scores = self.scores()
        if scores is not None:
            return scores
        return rank(
            self.network,
            self.mask,
            self._images,
            settings.batch_size,
            self._generator,
            micro_batch=settings.micro_batch,
            precision=settings.precision,
        )

    def _end_stage(self, scores: Scores) -> None:
        counts = self._stages[self._number].counts
        if counts is not None:
            smaller = Mask.keep_top(self.mask.structure, scores, counts)
            left = cut(self.network.state_dict(), smaller, within=self.mask)
            self.network, self.mask = rebuild(self._backbone, left), smaller
        # By a deadline these may be fewer than were planned.
        self._done_before += self._steps.done
        self._number += 1
        if not self._finished:
            self._begin_stage()


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Copies of the tensors whose names begin so, by what comes after it.

    Copies do not hold on to the file's bytes, and are aligned in memory, as those need not be.
    """
    return {n.removeprefix(prefix): t.clone() for n, t in tensors.items() if n.startswith(prefix)}
