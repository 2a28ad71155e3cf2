"""Admission: whether what a device gives back can be what came of its assignment."""

from __future__ import annotations

from common.errors import InputError
from common.exchange import Contribution, Receipt
from server.library import Library, StoredAssignment


def record_admitted(library: Library, contribution: Contribution) -> Receipt:
    """Store a contribution that may be stored; errors as of `admit` and `Library.record`."""
    assigned = library.assignment_of(contribution.request_id)
    if assigned is not None:
        admit(contribution, assigned)
    return library.record(contribution)


def admit(contribution: Contribution, assigned: StoredAssignment) -> None:
    """Raise InputError unless the mask keeps, of the units the device held, as many as it was to.

    A device can only have ranked what it held; anything else is a mistake, or made up.
    """
    mask, problems = contribution.mask, []
    if not mask.within(assigned.mask):
        beyond = int((mask.kept & ~assigned.mask.kept).sum())
        problems.append(f"it keeps {beyond} units that the device never held")
    if mask.counts != assigned.target:
        problems.append(f"it keeps {sum(mask.counts)} units, asked for were {sum(assigned.target)}")
    if problems:
        raise InputError(
            f"the mask of request {contribution.request_id} cannot come of its assignment: "
            f"{'; '.join(problems)}; send the mask that the device ended with"
        )
