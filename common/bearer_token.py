"""Bearer tokens as people keep them: in a file, in a variable, on the clipboard."""

from __future__ import annotations

import re
from pathlib import Path

from common.errors import InputError
from common.text_files import decoded, read_small

TOKEN = re.compile(r"[!-~]{1,200}")
AROUND = " \t\r\n\v\f\0\u00a0\u200b\ufeff"
"""What editors, shells and web pages leave around a token, seen or unseen."""
QUOTES = "\"'"
RULE = "it has 1 to 200 characters, all of ASCII and none of them a space"


def read_token(path: Path) -> str:
    """The token that is in a file. InputError where it cannot be read, or holds none."""
    return token_in(decoded(read_small(path)), str(path))


def token_in(text: str, place: str) -> str:
    """The token in a text, without what is around it: spaces, line ends, quotes, a byte-order mark.

    InputError, which names the place, unless there is one.
    """
    token = text.strip(AROUND)
    if len(token) > 1 and token[0] == token[-1] and token[0] in QUOTES:
        token = token[1:-1].strip(AROUND)
    check_token(token, place)
    return token


def check_token(token: str, place: str = "the token") -> None:
    """Raise InputError unless this can be a token. It is never shown."""
    if TOKEN.fullmatch(token):
        return
    if not token:
        what = f"{place} is empty"
    elif len(token.split()) > 1:
        what = f"{place} has {len(token.split())} words or lines, where one token is expected"
    elif not token.isascii() or not token.isprintable():
        what = f"{place} has characters that no token has"
    else:
        what = f"{place} has {len(token):,} characters"
    raise InputError(f"{what}; {RULE}: give it as it was handed out")
