"""Which addresses may be called.

A partner's URL is text that somebody typed and a name that somebody else's DNS answers for, and the caller sits inside
our network. So an address is looked at twice: ``check_url`` when the URL is saved, to tell the person what is wrong
with it, and ``resolve`` at every connection, which is the check that counts.
"""

import re
import socket
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
LookUp = Callable[[str, int], list[str]]


def _networks(described: dict[str, str]) -> dict[Network, str]:
    return {ip_network(network): what for network, what in described.items()}


# Refused even inside an allowed network: whoever reaches one of these holds the machine's own credentials.
NEVER = _networks(
    {
        "169.254.0.0/16": "link-local, where cloud metadata lives",
        "fe80::/10": "link-local",
        "100.100.100.200/32": "Alibaba Cloud metadata",
        "168.63.129.16/32": "Azure platform services",
        "192.0.0.192/32": "Oracle Cloud metadata",
        "fd00:ec2::254/128": "AWS metadata",
        "fd20:ce::254/128": "Google Cloud metadata",
        "64:ff9b::a9fe:0/112": "link-local behind NAT64",
        "2002:a9fe::/32": "link-local behind 6to4",
    }
)

# An explicit list, because ``is_global`` changes between Python versions and calls NAT64, 6to4, multicast and others
# global. Tunnels and translators are refused whole, not unwrapped. The first network that matches gives the reason.
REFUSED = _networks(
    {
        "0.0.0.0/8": "this network",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared by carriers (CGNAT)",
        "127.0.0.0/8": "loopback",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "IETF protocol assignments",
        "192.0.2.0/24": "documentation (TEST-NET-1)",
        "192.31.196.0/24": "AS112 name servers",
        "192.52.193.0/24": "automatic multicast tunnels",
        "192.88.99.0/24": "6to4 relays",
        "192.168.0.0/16": "private",
        "192.175.48.0/24": "AS112 name servers",
        "198.18.0.0/15": "benchmarks",
        "198.51.100.0/24": "documentation (TEST-NET-2)",
        "203.0.113.0/24": "documentation (TEST-NET-3)",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved, and broadcast",
        "::/128": "unspecified",
        "::1/128": "loopback",
        "::/96": "IPv4-compatible",
        "::ffff:0:0:0/96": "IPv4-translated (SIIT)",
        "64:ff9b::/96": "NAT64",
        "64:ff9b:1::/48": "local NAT64",
        "100::/64": "discarded by routers",
        "100:0:0:1::/64": "dummy prefix",
        "2001::/32": "Teredo",
        "2001::/23": "IETF protocol assignments",
        "2001:db8::/32": "documentation",
        "2002::/16": "6to4",
        "2620:4f:8000::/48": "AS112 name servers",
        "3ffe::/16": "the old 6bone",
        "3fff::/20": "documentation",
        "5f00::/16": "segment routing",
        "fc00::/7": "private (unique local)",
        "fec0::/10": "private (site-local)",
        "ff00::/8": "multicast",
        "::/3": "not a public address (outside 2000::/3)",
        "4000::/2": "not a public address (outside 2000::/3)",
        "8000::/1": "not a public address (outside 2000::/3)",
    }
)

_LOOPBACK = IPv4Address("127.0.0.1")
_INSIDE_NAMES = (".internal", ".local", ".localhost", ".localdomain", ".lan", ".home.arpa")

# Narrower than RFC 3986: what is left, every URL parser reads the same way.
_URL = re.compile(r"[!-\[\]-~]{1,2048}")  # printable ASCII without space and backslash
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

# getaddrinfo cannot be interrupted and ignores socket timeouts. Each look-up gets a thread of its own that may be left
# behind; the cap keeps a dead name server from costing more than this many.
LOOK_UPS_AT_ONCE = 16
_slots = threading.BoundedSemaphore(LOOK_UPS_AT_ONCE)


class UrlRefused(ValueError):
    """This URL may not be saved as an endpoint; the message says why, and what to write instead."""


class AddressRefused(Exception):
    """The host has an address that may not be called."""


class LookUpFailed(Exception):
    """The host has no address, or its name server did not say in time."""


def why_refused(address: Address, *, allowed_networks: Collection[Network] = ()) -> str | None:
    """Say what kind of address this is if it may not be called; ``None`` if it may.

    ``allowed_networks`` overrules everything but ``NEVER``. 127.0.0.1 and ::1 are allowed together, since "localhost"
    answers with both.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # the kernel would dial the IPv4 address
    for network, what in NEVER.items():
        if address in network:
            return what
    aliases = {address, _LOOPBACK} if address == IPv6Address("::1") else {address}
    if any(alias in network for network in allowed_networks for alias in aliases):
        return None
    return next((what for network, what in REFUSED.items() if address in network), None)


def check_url(url: str, *, allow_http: bool = False, allowed_networks: Collection[Network] = ()) -> None:
    """Refuse a URL that could never be, or must never be, a partner's endpoint. Asks no name server.

    ``allow_http`` is for development and tests. Raises ``UrlRefused``, with a message for the person who typed the URL.
    """
    if not _URL.fullmatch(url):
        raise UrlRefused(
            "The URL must be at most 2,048 printable ASCII characters without spaces or backslashes;"
            " write an international host name in its xn-- form and escape the rest."
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UrlRefused(f"The URL cannot be read ({error}); write https://host:port/path.") from error
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_http):
        raise UrlRefused("The URL must start with https://.")
    if "@" in parts.netloc:
        raise UrlRefused("The URL holds a user name or password, which would end up in logs; leave it out.")
    if "#" in url:
        raise UrlRefused("The URL holds a fragment (#…), which is never sent; leave it out.")
    if port == 0:
        raise UrlRefused("Port 0 cannot be called; use the port the receiver listens on.")
    host = (parts.hostname or "").removesuffix(".")
    if "[" in parts.netloc or _NUMBER.fullmatch(host.rpartition(".")[2]):
        _check_literal(host, allowed_networks)
    else:
        _check_name(host, allowed_networks)


def _check_name(host: str, allowed_networks: Collection[Network]) -> None:
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise UrlRefused(f"{host!r} is not a host name; use letters, digits, hyphens and dots.")
    if host == "localhost" and why_refused(_LOOPBACK, allowed_networks=allowed_networks) is None:
        return
    if "." not in host:
        raise UrlRefused(f"{host!r} is a name inside one network; use the full public name, such as hooks.example.com.")
    if host.endswith(_INSIDE_NAMES):
        raise UrlRefused(f"{host!r} is a name inside one network; use a public name.")


def _check_literal(host: str, allowed_networks: Collection[Network]) -> None:
    # Whatever ends in a number is an address to somebody: getaddrinfo reads 2130706433, 0x7f000001, 0177.0.0.1 and
    # 127.1 as loopback. ip_address takes the one plain spelling only. A scope (%eth0) has no place in a URL.
    try:
        address = ip_address("" if "%" in host else host)
    except ValueError as error:
        raise UrlRefused(f"{host!r} is not a plain address; use a name, or an address such as 8.8.8.8.") from error
    if what := why_refused(address, allowed_networks=allowed_networks):
        raise UrlRefused(f"{host} may not be called: {what}. Use a public address, or have its network allowed.")


def look_up(host: str, port: int) -> list[str]:
    """Ask the system for every address of ``host``, in the order in which it would dial them."""
    return [str(answer[4][0]) for answer in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def resolve(
    host: str,
    port: int,
    *,
    allowed_networks: Collection[Network] = (),
    timeout: timedelta,
    look_up: LookUp = look_up,
) -> list[Address]:
    """Look ``host`` up, once, and return its addresses in the order to dial them.

    All of them must pass or the host is refused whole: who controls the name controls which one comes first. Raises
    ``AddressRefused`` and ``LookUpFailed``.
    """
    answers = _answers(host, port, seconds=timeout.total_seconds(), look_up=look_up)
    found = [ip_address(answer) for answer in dict.fromkeys(answers)]
    if not found:
        raise LookUpFailed(f"{host} has no address")
    for address in found:
        if what := why_refused(address, allowed_networks=allowed_networks):
            raise AddressRefused(f"{host} answers with {address}, which may not be called: {what}")
    return found


def _answers(host: str, port: int, *, seconds: float, look_up: LookUp) -> list[str]:
    answer: Future[list[str]] = Future()

    def ask() -> None:
        try:
            answer.set_result(look_up(host, port))
        except Exception as error:  # noqa: BLE001 - raised again below, by whoever waits for it
            answer.set_exception(error)
        finally:
            _slots.release()

    ends_at = time.monotonic() + seconds
    if not _slots.acquire(timeout=seconds):
        raise LookUpFailed(f"{host} was not looked up: {LOOK_UPS_AT_ONCE} look-ups wait for their name servers already")
    threading.Thread(target=ask, name=f"look up {host}", daemon=True).start()
    try:
        return answer.result(timeout=ends_at - time.monotonic())
    except TimeoutError as error:
        raise LookUpFailed(f"{host} was not found within {seconds:g} s") from error
    except (OSError, UnicodeError) as error:
        raise LookUpFailed(f"{host} was not found: {error}") from error
