"""Access: who calls, and whether they may. Tokens are the library's; certificates are checked by TLS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.errors import AccessError, TokenError
from common.grpc_codec import AUTHORIZATION, BEARER
from server.tokens import Caller, Role

MAX_TOKEN_CHARACTERS = 200


@dataclass(frozen=True)
class Access:
    """Who is let in: whoever has a token that `identify` knows, and devices by other means if so said.

    With `certificates`, a device that TLS has accepted a certificate of needs no token; its name is
    the certificate's. With `anonymous`, no device needs anything.
    """

    identify: Callable[[str], Caller | None]
    certificates: bool = False
    anonymous: bool = False

    def caller(self, metadata: Mapping[str, str | bytes], certificate_names: Sequence[bytes]) -> Caller:
        """Who calls. Raises TokenError if nobody who is let in."""
        given = metadata.get(AUTHORIZATION)
        if given is not None:
            return self._bearer(given if isinstance(given, str) else "")
        if self.certificates and certificate_names:
            name = certificate_names[0].decode(errors="replace")
            return Caller(f"certificate:{name}"[:MAX_TOKEN_CHARACTERS], "device")
        if self.anonymous:
            return Caller("", "device")
        raise TokenError(
            "this call has no token; ask the server's operator for one, and send it as the metadata "
            f'"{AUTHORIZATION}: {BEARER}TOKEN"'
        )

    def _bearer(self, given: str) -> Caller:
        scheme, _, token = given.partition(" ")
        caller = None
        if scheme.lower() == "bearer" and len(token) <= MAX_TOKEN_CHARACTERS:
            caller = self.identify(token)
        if caller is None:
            raise TokenError(
                "this server knows no such token, or it was revoked; ask its operator for a new one"
            )
        return caller


def check_role(caller: Caller, role: Role) -> None:
    """Raise AccessError unless the caller has this role."""
    if caller.role != role:
        raise AccessError(
            f"the token of {caller.name!r} has the role {caller.role}, and this call needs {role}; "
            "use another token"
        )
