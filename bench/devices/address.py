"""``ssh://[user@]host[:port][?python=/path]``, looked at before anything is started with it."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from edgewise.errors import AddressError


@dataclass(frozen=True)
class Address:
    """Where to log in. ``host`` may be an alias of the user's ssh configuration; ``python`` runs the agent there."""

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"


def address(text: str) -> Address:
    """The address in ``text``.

    Raises:
        AddressError: it isn't one, or holds something that ssh could take for an option, or a password.
    """
    try:
        found = urlsplit(text)
        port, query = found.port, parse_qsl(found.query, keep_blank_values=True, strict_parsing=bool(found.query))
    except ValueError as error:
        raise _wrong(text, str(error)) from None
    user, at, _ = found.netloc.rpartition("@")
    # Not `hostname`, which is in lower case: an alias in the user's configuration may not be.
    host = found.netloc[len(user) + len(at) :]
    host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if ":" in user:
        # The text itself would show the password.
        raise AddressError(
            "no passwords in an address", where=f"ssh://…@{host}", hint="use a key: ssh-keygen, then ssh-copy-id"
        )
    unknown = sorted({key for key, _ in query} - {"python"})
    if unknown or found.path not in ("", "/") or found.fragment or len(query) > 1:
        raise _wrong(text, f"unknown: {', '.join(unknown) or found.path or found.fragment or found.query}")
    python = query[0][1] if query else "python3"
    for what, value in (("host", host), ("user", user if at else "x"), ("python", python)):
        if not value or value.startswith("-") or not value.isprintable() or any(char.isspace() for char in value):
            raise _wrong(text, f"{what} {value!r} can't be")
    return Address(host=host, user=user if at else None, port=port, python=python)


def _wrong(text: str, why: str) -> AddressError:
    return AddressError(
        f"expected ssh://[user@]host[:port][?python=/path], got {text!r}: {why}",
        where="device",
        hint="docs/devices.md has examples",
    )
