"""Admission: whether what somebody gives can be what it says, and whether it is theirs to give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import AccessError, InputError, MismatchError
from common.exchange import Contribution, Offer
from common.mask import Mask
from common.structure import Structure
from server.entries import ENTRY_METHODS, MAX_NAME_CHARACTERS, Entry, StoredAssignment

if TYPE_CHECKING:
    from common.backbone import Weights


def check_structure(mask: Mask, structure: Structure) -> None:
    """Raise MismatchError unless the mask is of the structure on offer."""
    theirs, ours = mask.structure.digest, structure.digest
    if theirs != ours:
        raise MismatchError(
            f"the mask is of structure {theirs[:12]}, this library's is {ours[:12]}; "
            "fetch what the library offers again"
        )


def check_weights(weights: Weights, founded_on: str) -> None:
    """Raise MismatchError unless the weights are those of the digest that a library was founded on."""
    from common.backbone import weights_digest

    digest = weights_digest(weights)
    if digest != founded_on:
        raise MismatchError(
            f"these weights have digest {digest[:12]}, the library was founded on {founded_on[:12]}; "
            "give the checkpoint it was founded on"
        )


def check_contributor(name: str) -> None:
    """Raise InputError unless entries can be kept under this name, and told to operators elsewhere."""
    # Bytes of a path or an argument that are no text come as surrogates.
    is_text = not any("\ud800" <= character <= "\udfff" for character in name)
    if len(name) > MAX_NAME_CHARACTERS or not is_text:
        raise InputError(
            f"the contributor {name[:40]!r} has {len(name)} characters; a name is text of at most "
            f"{MAX_NAME_CHARACTERS} characters: take another"
        )


def check_asker(request_id: str, asked_by: str, contributor: str | None) -> None:
    """Raise AccessError if somebody else asked a request. None is the operator, "" any without a name."""
    if contributor is not None and contributor != asked_by:
        who = repr(contributor) if contributor else "a device without a name"
        raise AccessError(
            f"request {request_id} was not assigned to {who}, and only who asked may go on with it; use "
            "the token that it was asked with, or ask under a new request id"
        )


def admit(contribution: Contribution, assigned: StoredAssignment) -> None:
    """Raise InputError unless the mask keeps, of the units the device held, as many as it was to.

    A device can only have ranked what it held; anything else is a mistake, or made up.
    """
    mask, problems = contribution.mask, []
    if not mask.within(assigned.mask):
        beyond = int((mask.kept & ~assigned.mask.kept).sum())
        problems.append(f"it keeps {beyond} units that the device never held")
    if mask.counts != assigned.target:
        wrong = [
            f"{have} of {group.name}, asked for were {want}"
            for group, have, want in zip(mask.structure.groups, mask.counts, assigned.target, strict=True)
            if have != want
        ]
        problems.append(f"it keeps {', '.join(wrong[:3])}")
    if problems:
        raise InputError(
            f"the mask of request {contribution.request_id} cannot come of its assignment: "
            f"{'; '.join(problems)}; send the mask that the device ended with"
        )


def check_entry(entry: Entry, offer: Offer) -> None:
    """Raise InputError, or MismatchError, unless it can be an entry of a library of this offer."""
    check_structure(entry.mask, offer.structure)
    offer.probe.check(entry.signature)
    # What holds for a contribution holds for every entry.
    Contribution(entry.entry, entry.mask, entry.accuracy_before, entry.accuracy_after, entry.iterations)
    problems = []
    if entry.method not in ENTRY_METHODS:
        problems.append(f"its method is {entry.method!r}, known are {', '.join(ENTRY_METHODS)}")
    names = [entry.contributor, *(neighbour.entry for neighbour in entry.neighbours)]
    if (longest := max(map(len, names))) > MAX_NAME_CHARACTERS:
        problems.append(f"a name in it has {longest} characters, at most are {MAX_NAME_CHARACTERS}")
    if entry.recorded.tzinfo is None:
        problems.append(f"it was recorded at {entry.recorded}, in no time zone")
    if problems:
        raise InputError(
            f"entry {entry.entry} cannot be taken in: {'; '.join(problems)}; export it again"
        )
