"""What a browser may be tricked into: foreign pages, rebound names, sniffed types. Knows no route.

A page of another site always sends its Origin with what can change something; a page that bound
its own name to our address is caught by the Host. Both are checked for every method and path.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from gateway.errors import RefusalError

MAX_HEADER_BYTES = 64 * 1024
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS: dict[str, str] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_EXPOSED = "x-request-id, retry-after"


@dataclass(frozen=True, slots=True)
class Guard:
    """The names and origins that are let through."""

    origins: frozenset[str]
    hosts: frozenset[str]
    any_host: bool
    """Any Host will do: callers are known by their tokens, which no foreign page has."""
    encodings: tuple[str, ...] = ()
    """What bodies may be encoded with."""

    def admit(self, headers: Headers) -> dict[str, str]:
        """The headers to add to the answer; RefusalError for what must not pass."""
        self._check_headers(headers)
        self._check_host(headers.getlist("host"))
        return self._check_origin(headers)

    def preflight(self, headers: Headers) -> dict[str, str] | None:
        """The answer to a browser that asks before it calls; None for any other request."""
        if headers.get("origin") not in self.origins:
            return None
        if "access-control-request-method" not in headers:
            return None
        return {
            "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE",
            "access-control-allow-headers": headers.get("access-control-request-headers", ""),
            "access-control-max-age": "600",
        }

    def _check_headers(self, headers: Headers) -> None:
        if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEADER_BYTES:
            raise RefusalError(431)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity", *self.encodings):
            taken = ", ".join(self.encodings)
            raise RefusalError(
                415, f"send the body without Content-Encoding{taken and f', or as {taken}'}"
            )

    def _check_host(self, hosts: list[str]) -> None:
        if len(hosts) != 1:
            raise RefusalError(400, "send one Host header")
        name = host_name(hosts[0])
        if self.any_host or name in self.hosts or _is_local(name):
            return
        raise RefusalError(421, "this server is not called by that name; see allowed_hosts")

    def _check_origin(self, headers: Headers) -> dict[str, str]:
        given = headers.getlist("origin")
        if not given:
            return {"vary": "origin"} if self.origins else {}
        origin = given[0]
        if len(given) == 1 and origin in self.origins:
            return {
                "access-control-allow-origin": origin,
                "access-control-expose-headers": _EXPOSED,
                "cross-origin-resource-policy": "cross-origin",
                "vary": "origin",
            }
        # Behind a proxy that ends TLS the scheme seen here differs; name and port do not.
        if len(given) == 1 and _site(origin) == headers["host"].lower():
            return {}
        raise RefusalError(403, "the origin may not call this server; see allowed_origins")


def guard(
    origins: Iterable[str], hosts: Iterable[str], *, tokens: bool, encodings: tuple[str, ...] = ()
) -> Guard:
    """The guard of a configuration; ValueError for an origin that is none."""
    wanted = frozenset(origin.rstrip("/") for origin in origins)
    for origin in wanted:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}":
            raise ValueError(f"allowed_origins: {origin} is not an origin like https://ui.example")
    names = frozenset(host.lower() for host in hosts)
    return Guard(wanted, names, tokens and not names, encodings)


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        return name if not port or port.startswith(":") else host
    return host.partition(":")[0].lower()


def _site(origin: str) -> str | None:
    """The name and port in an Origin; None where it is none of a page."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    whole = parts.scheme in ("http", "https") and origin == f"{parts.scheme}://{parts.netloc}"
    return parts.netloc.lower() if whole and parts.netloc else None


def _is_local(name: str) -> bool:
    """A name that nobody else can bind to our address: localhost, or an address itself."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
