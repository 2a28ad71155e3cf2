"""Every error that maskvote raises on purpose, and the exit status that tells whose fault it was.

    MaskvoteError
    +-- InputError           the caller's: a value, a file or a budget that breaks a stated rule   exit 2
    |   +-- Diverged             tuning that came to numbers which are not finite
    |   +-- MaskError            a mask that does not fit its structure
    |   +-- WeightsError         weights that do not fit the backbone, or a file that is damaged
    |   +-- TaskDataError        a task's images: none, unreadable, or too few classes
    |   +-- BudgetError          a budget below the smallest sub-network, or not a number
    |   +-- SignatureError       a signature that is malformed or from another probe
    |   +-- UnsupportedModel     a timm model that is unknown or whose structure cannot be followed
    +-- MismatchError        both sides are sound but do not belong together (digests differ)      exit 3
    +-- LibraryError         the server's own store: damaged, locked, full, of another version     exit 4
    |   +-- DamagedError         what is asked for is stored, and not as it was written
    +-- AccessError          who asks may not do this                                              exit 5
    |   +-- TokenError           who asks is not let in: no token, an unknown or a revoked one
    +-- UnavailableError     the server cannot be reached, or serves as many as it can             exit 6

A message gives the value, the rule, and the next action, in one sentence each.
"""

from __future__ import annotations


class MaskvoteError(Exception):
    """Base of all; `exit_status` is what a command line returns for it."""

    exit_status = 1


class InputError(MaskvoteError, ValueError):
    """A value that the caller gave breaks a stated rule."""

    exit_status = 2


class Diverged(InputError):
    """Tuning whose loss, weights or features are not finite any more."""


class MaskError(InputError):
    """A mask that does not fit its structure."""


class WeightsError(InputError):
    """Weights that do not fit the backbone, or a weights file that is damaged."""


class TaskDataError(InputError):
    """A task's images cannot be used."""


class BudgetError(InputError):
    """A budget that no sub-network fits, or that is not a number."""


class SignatureError(InputError):
    """A signature that is malformed or from another probe."""


class UnsupportedModel(InputError):
    """A timm model that is unknown, or whose structure cannot be followed."""


class MismatchError(MaskvoteError):
    """Two sound things that do not belong together: their digests differ."""

    exit_status = 3


class LibraryError(MaskvoteError):
    """The library file is damaged, locked, full, or of another version."""

    exit_status = 4


class DamagedError(LibraryError):
    """What is asked for is stored, and not as it was written: to ask again is of no use."""


class AccessError(MaskvoteError):
    """The caller may not do this."""

    exit_status = 5


class TokenError(AccessError):
    """The caller has no token, or one that is unknown or revoked."""


class UnavailableError(MaskvoteError):
    """The server cannot be reached, or has too much to do; the same call may succeed later.

    `retry_seconds` is how long to wait, if the server says so.
    """

    exit_status = 6

    def __init__(self, message: str, retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds
