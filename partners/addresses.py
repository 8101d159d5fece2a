"""Which addresses may be called.

A partner's URL is text that somebody typed and a name that somebody else's DNS answers for, and the caller sits inside
our network. So an address is looked at twice: ``check_url`` when the URL is saved, to tell the person what is wrong
with it, and ``resolve`` at every connection, which is the check that counts.
"""

import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
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
_DEFAULT_PORTS = {
    "http": 80,
    "https": 443,
    "postgresql": 5432,
    "postgres": 5432,
    "amqp": 5672,
    "amqps": 5671,
    "redis": 6379,
    "rediss": 6379,
}
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


def look_up(host: str, port: int) -> list[str]:
    """Ask the system for every address of ``host``, in the order in which it would dial them."""
    return [str(answer[4][0]) for answer in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class OwnPlaces:
    """Where this service itself, its database and its broker are: no partner's URL may lead there.

    This holds even inside an allowed network. ``sites`` are names, addresses or URLs of the service, ``services`` URLs
    of what it uses. A site ``.example.com`` covers the names below it too, and ``*`` covers nothing (both as in
    Django's ALLOWED_HOSTS). A URL may name several hosts (``amqp://a:5672,b:5672``); one without a host is skipped.

    Each is refused at every port, but on the loopback only at the port that is given: there, only the port tells
    whose it is. The addresses of services are looked up, and kept for a minute. Those of sites are not: behind a
    content network, a site shares its address with strangers, partners among them.
    """

    FRESH_SECONDS = 60.0
    LOOK_UP_AT_MOST = timedelta(seconds=1)  # of each name, from the time that a connection has

    def __init__(self, *, sites: Iterable[str] = (), services: Iterable[str] = ()) -> None:
        self._names: set[str] = set()
        self._services: set[tuple[str, int | None]] = set()
        self._suffixes: tuple[str, ...] = ()
        self._addresses: set[Address] = set()
        self._loopback_ports: set[int] = set()
        self._known: dict[str, tuple[float, frozenset[Address]]] = {}
        for site in sites:
            if site.startswith("."):
                self._suffixes += (site.lower(),)
                self._names.add(site.lower()[1:])
            elif site != "*":
                self._add(site)
        for service in services:
            self._services |= self._add(service)

    def _add(self, text: str) -> set[tuple[str, int | None]]:
        named = set()
        for host, port in _places(text):
            address = _as_address(host)
            if address is None:
                self._names.add(host)
                named.add((host, port))
            elif address != _LOOPBACK:
                self._addresses.add(address)
            elif port is not None:
                self._loopback_ports.add(port)
        return named

    def has(self, host: str, port: int) -> bool:
        """Whether a URL with this host, a name or an address, leads to a place of ours. Asks no name server."""
        address = _as_address(host)
        if address is not None:
            return self._has_address(address, port)
        return host in self._names or host.endswith(self._suffixes)

    def _has_address(self, address: Address, port: int) -> bool:
        return port in self._loopback_ports if address == _LOOPBACK else address in self._addresses

    def find(self, found: Iterable[Address], port: int, *, timeout: timedelta, look_up: LookUp) -> Address | None:
        """Find an address that is ours; takes at most about ``timeout``, and a name that is not found has none."""
        ends_at = time.monotonic() + timeout.total_seconds()
        ours = {address for service in self._services for address in self._look_up(*service, port, ends_at, look_up)}
        return next((it for it in found if _plain(it) in ours or self._has_address(_plain(it), port)), None)

    def _look_up(
        self, name: str, own_port: int | None, port: int, ends_at: float, look_up: LookUp
    ) -> frozenset[Address]:
        now = time.monotonic()
        asked_at, addresses = self._known.get(name, (-self.FRESH_SECONDS, frozenset[Address]()))
        if now - asked_at > self.FRESH_SECONDS and ends_at > now:
            seconds = min(self.LOOK_UP_AT_MOST.total_seconds(), ends_at - now)
            with suppress(LookUpFailed):  # then what was found before still stands
                answers = _answers(name, own_port or 0, seconds=seconds, look_up=look_up)
                addresses = frozenset(_plain(ip_address(answer)) for answer in answers)
            self._known[name] = (now, addresses)
        return addresses if port == own_port else addresses - {_LOOPBACK}


def _places(text: str) -> Iterator[tuple[str, int | None]]:
    """Read the hosts and ports in a URL or in a bare ``host`` or ``host:port``."""
    scheme, separator, rest = text.rpartition("://")
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2].lower()
    for place in netloc.split(","):
        host, _, port = place.rpartition(":")
        if not (host and port.isdigit()) or (not separator and _as_address(place)):
            host, port = place, ""
        host = host.strip("[]").removesuffix(".")
        if host:
            yield host, int(port) if port else _DEFAULT_PORTS.get(scheme if separator else "")


def _as_address(host: str) -> Address | None:
    if host == "localhost":
        return _LOOPBACK
    try:
        return _plain(ip_address(host))
    except ValueError:
        return None


def _plain(address: Address) -> Address:
    """Give one spelling to addresses that lead to the same place: the loopback has many."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return _LOOPBACK if address.is_loopback or address.is_unspecified else address


NOTHING_OURS = OwnPlaces()


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


def check_url(
    url: str,
    *,
    allow_http: bool = False,
    allowed_networks: Collection[Network] = (),
    own_places: OwnPlaces = NOTHING_OURS,
) -> None:
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
    if own_places.has(host, port or _DEFAULT_PORTS[parts.scheme]):
        raise UrlRefused(f"{host} is this service itself, or its database or broker; write the partner's address.")


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


def resolve(
    host: str,
    port: int,
    *,
    allowed_networks: Collection[Network] = (),
    own_places: OwnPlaces = NOTHING_OURS,
    timeout: timedelta,
    look_up: LookUp = look_up,
) -> list[Address]:
    """Look ``host`` up, once, and return its addresses in the order to dial them.

    All of them must pass or the host is refused whole: who controls the name controls which one comes first. Raises
    ``AddressRefused`` and ``LookUpFailed``.
    """
    ends_at = time.monotonic() + timeout.total_seconds()
    answers = _answers(host, port, seconds=timeout.total_seconds(), look_up=look_up)
    found = [ip_address(answer) for answer in dict.fromkeys(answers)]
    if not found:
        raise LookUpFailed(f"{host} has no address")
    for address in found:
        if what := why_refused(address, allowed_networks=allowed_networks):
            raise AddressRefused(f"{host} answers with {address}, which may not be called: {what}")
    left = timedelta(seconds=ends_at - time.monotonic())
    if ours := own_places.find(found, port, timeout=left, look_up=look_up):
        raise AddressRefused(f"{host} answers with {ours}, which is this service's own")
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
        raise LookUpFailed(f"{host} was not found: {getattr(error, 'strerror', None) or error}") from error
