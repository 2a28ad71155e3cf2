"""Errors of the operating system: a full disk, too little memory. They are told as what they are.

Where code that is not ours may raise anything, a broad `except` says what is wrong with a file or a
model. These errors say nothing about either, so they pass:

    except Exception as error:
        pass_on(error)
        raise WeightsError(...) from error
"""

from __future__ import annotations

import errno
import os
import re

SPACE = "free some space there, or use another place (TMPDIR names that of temporary files)"
MEMORY = "free some memory, or use less"
ACCESS = "check the path and its permissions"
ADVICE = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EFBIG: SPACE,
    errno.ENOMEM: MEMORY,
    errno.EMFILE: "allow this process more open files (ulimit -n)",
    errno.ENFILE: "let other programs close files",
    errno.EIO: "check the disk",
    errno.EROFS: ACCESS,
}
"""What to do, by the number of the error. Others, as of a file that is not there, are told where they
occur."""
IN_WORDS = {
    errno.ENOSPC: re.compile("No space left on device|No usable temporary directory"),
    errno.ENOMEM: re.compile(
        "can't allocate memory|Failed to allocate memory|bad_alloc|out of memory|not enough memory",
        re.IGNORECASE,
    ),
}
"""By what words such errors are known where a library of another language has them in words only."""


def system_error(error: BaseException) -> OSError | None:
    """The error of the operating system that an error is or was raised from; None where there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        if isinstance(cause, OSError) and cause.errno in ADVICE:
            return cause
        for number, words in IN_WORDS.items():
            if words.search(str(cause)):
                return OSError(number, os.strerror(number))
        cause = cause.__cause__
    return None


def pass_on(error: BaseException) -> None:
    """Raise the operating system's error that this is or was raised from, if any."""
    if (found := system_error(error)) is not None:
        raise found from error


def sentence_of(error: OSError) -> str:
    """What one of these errors is, and what to do."""
    place = "" if error.filename is None else f" of {error.filename}"
    return f"the operating system says {error.strerror or str(error)!r}{place}; {advice_on(error)}"


def advice_on(error: OSError) -> str:
    """What to do about an error."""
    return ADVICE.get(error.errno or 0, ACCESS)
