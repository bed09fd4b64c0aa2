"""Who may change the drafter: the holder of the administrator's key, or, without one, this machine.

SGLang checks keys in a middleware that some ways of serving its app leave out, and leaves its own
weight endpoints open when there is no key; so the handlers check for themselves.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from respec_server.refusal import Refusal

LOOPBACK_NAMES = {"localhost"}


def require_admin(
    headers: Mapping[str, str], client_host: str | None, admin_api_key: str | None
) -> None:
    """Raise `Refusal` 401 or 403 unless this request may push. `headers` are case-insensitive."""
    if admin_api_key:
        _require_key(headers.get("authorization"), admin_api_key)
        return
    if not _is_loopback(client_host):
        raise Refusal(
            403,
            "not_local",
            "This server has no --admin-api-key, so its drafter can be changed from this machine "
            "only; start it with one.",
        )
    # A web page in a browser on this machine reaches loopback as well, and says where it is from.
    asked, origin = headers.get("host"), headers.get("origin")
    if not _names_loopback(f"//{asked}") or (origin is not None and not _names_loopback(origin)):
        raise Refusal(
            403,
            "not_local",
            "Without an --admin-api-key only requests to localhost that no foreign web page makes "
            "may change the drafter.",
        )


def _require_key(authorization: str | None, key: str) -> None:
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise Refusal(
            401, "no_key", "Give the server's --admin-api-key as `Authorization: Bearer KEY`."
        )
    if not secrets.compare_digest(given.strip().encode(), key.encode()):
        raise Refusal(401, "wrong_key", "That is not the server's --admin-api-key.")


def _is_loopback(host: str | None) -> bool:
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _names_loopback(url: str) -> bool:
    try:
        name = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return name in LOOPBACK_NAMES or _is_loopback(name)
