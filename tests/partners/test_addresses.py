import socket
import threading
from datetime import timedelta
from ipaddress import ip_address, ip_network

import pytest

from partners.addresses import (
    LOOK_UPS_AT_ONCE,
    AddressRefused,
    LookUp,
    LookUpFailed,
    Network,
    OwnPlaces,
    UrlRefused,
    check_url,
    resolve,
    why_refused,
)
from tests.partners.hostile import NEVER_CALLED

LOOPBACK = ip_network("127.0.0.0/8")
SECOND = timedelta(seconds=1)


def answering(*answers: str) -> LookUp:
    return lambda host, port: list(answers)


NEVER_CALLED_FLAT = [pytest.param(text, id=f"{row}-{text}") for row, texts in NEVER_CALLED.items() for text in texts]

PUBLIC = [
    *["1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "93.184.216.34", "100.63.255.255", "100.128.0.0"],
    *[
        "126.255.255.255",
        "128.0.0.1",
        "168.63.129.15",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "223.255.255.1",
    ],
    *["::ffff:8.8.8.8", "2001:200::1", "2001:4860:4860::8888", "2606:4700::1111", "2a00:1450::1", "2003::1", "3ffd::1"],
]


@pytest.mark.parametrize("text", NEVER_CALLED_FLAT)
def test_an_address_that_is_not_public_is_refused(text: str) -> None:
    assert why_refused(ip_address(text)) is not None


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_may_be_called(text: str) -> None:
    assert why_refused(ip_address(text)) is None


@pytest.mark.parametrize("text", NEVER_CALLED_FLAT)
def test_a_name_that_resolves_to_an_address_that_is_not_public_is_refused(text: str) -> None:
    with pytest.raises(AddressRefused):
        resolve("partner.example", 443, timeout=SECOND, look_up=answering(text))


@pytest.mark.parametrize("text", NEVER_CALLED_FLAT)
def test_a_url_with_an_address_that_is_not_public_is_refused(text: str) -> None:
    host = f"[{text}]" if ":" in text else text
    with pytest.raises(UrlRefused):
        check_url(f"https://{host}/hook")


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("127.0.0.1", "127.0.0.0/8"),
        ("::1", "127.0.0.0/8"),
        ("::1", "::1/128"),
        ("::ffff:10.1.2.3", "10.0.0.0/8"),
        ("fd12::1", "fd12::/16"),
        ("100.64.0.1", "100.64.0.0/10"),
    ],
)
def test_an_allowed_network_may_be_called(text: str, allowed: str) -> None:
    assert why_refused(ip_address(text), allowed_networks=[ip_network(allowed)]) is None


@pytest.mark.parametrize(
    "text",
    [
        *["169.254.169.254", "169.254.0.1", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254", "fd20:ce::254"],
        *["168.63.129.16", "100.100.100.200", "192.0.0.192", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"],
    ],
)
def test_link_local_and_metadata_are_refused_even_when_everything_is_allowed(text: str) -> None:
    everything: list[Network] = [ip_network("0.0.0.0/0"), ip_network("::/0"), ip_network("169.254.0.0/16")]

    assert why_refused(ip_address(text), allowed_networks=everything) is not None


def test_allowing_ipv4_loopback_allows_no_other_ipv6_address() -> None:
    assert why_refused(ip_address("::2"), allowed_networks=[LOOPBACK]) == "IPv4-compatible"


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://hooks.example.com/removals?tenant=7",
        "https://hooks.example.com:8443/removals",
        "https://HOOKS.Example.COM/",
        "https://hooks.example.com./",
        "https://xn--bcher-kva.example/",
        "https://with_underscore.example/",
        "https://8.8.8.8/hook",
        "https://[2606:4700::1111]/hook",
    ],
)
def test_a_public_https_url_may_be_saved(url: str) -> None:
    check_url(url)


CHARACTERS = (
    "The URL must be at most 2,048 printable ASCII characters without spaces or backslashes;"
    " write an international host name in its xn-- form and escape the rest."
)
SCHEME = "The URL must start with https://."
USER_INFO = "The URL holds a user name or password, which would end up in logs; leave it out."


def not_plain(host: str) -> str:
    return f"{host!r} is not a plain address; use a name, or an address such as 8.8.8.8."


def not_a_name(host: str) -> str:
    return f"{host!r} is not a host name; use letters, digits, hyphens and dots."


def inside(host: str) -> str:
    return f"{host!r} is a name inside one network; use a public name."


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", CHARACTERS),
        ("https://hooks.example.com/a b", CHARACTERS),
        ("https://hooks.example.com/\n", CHARACTERS),
        ("https://hooks.example.com\\@evil.example/", CHARACTERS),
        ("https://bücher.example/", CHARACTERS),
        ("https://hooks.example.com/" + "x" * 2048, CHARACTERS),
        ("http://hooks.example.com/", SCHEME),
        ("ftp://hooks.example.com/", SCHEME),
        ("file:///etc/passwd", SCHEME),
        ("gopher://hooks.example.com/", SCHEME),
        ("hooks.example.com/hook", SCHEME),
        ("//hooks.example.com/hook", SCHEME),
        ("https://user:pw@hooks.example.com/", USER_INFO),
        ("https://user@hooks.example.com/", USER_INFO),
        ("https://@hooks.example.com/", USER_INFO),
        (
            "https://hooks.example.com/#top",
            "The URL holds a fragment (#…), which is never sent; leave it out.",
        ),
        (
            "https://hooks.example.com/#",
            "The URL holds a fragment (#…), which is never sent; leave it out.",
        ),
        ("https://hooks.example.com:0/", "Port 0 cannot be called; use the port the receiver listens on."),
        (
            "https://hooks.example.com:65536/",
            "The URL cannot be read (Port out of range 0-65535); write https://host:port/path.",
        ),
        (
            "https://hooks.example.com:https/",
            "The URL cannot be read (Port could not be cast to integer value as 'https'); write https://host:port/path.",
        ),
        ("https://[::1/", "The URL cannot be read (Invalid IPv6 URL); write https://host:port/path."),
        ("https:///hook", not_a_name("")),
        ("https://hooks..example.com/", not_a_name("hooks..example.com")),
        ("https://-hooks.example.com/", not_a_name("-hooks.example.com")),
        ("https://127%2e0%2e0%2e1.example/", not_a_name("127%2e0%2e0%2e1.example")),
        ("https://2130706433/", not_plain("2130706433")),
        ("https://0x7f000001/", not_plain("0x7f000001")),
        ("https://0X7F.1/", not_plain("0x7f.1")),
        ("https://0177.0.0.1/", not_plain("0177.0.0.1")),
        ("https://127.1/", not_plain("127.1")),
        ("https://0/", not_plain("0")),
        ("https://example.0x7f/", not_plain("example.0x7f")),
        ("https://[2606:4700::1%25eth0]/", not_plain("2606:4700::1%25eth0")),
        (
            "https://127.0.0.1./",
            "127.0.0.1 may not be called: loopback. Use a public address, or have its network allowed.",
        ),
        (
            "https://receiver/",
            "'receiver' is a name inside one network; use the full public name, such as hooks.example.com.",
        ),
        (
            "https://localhost/",
            "'localhost' is a name inside one network; use the full public name, such as hooks.example.com.",
        ),
        ("https://metadata.google.internal/", inside("metadata.google.internal")),
        ("https://metadata.google.internal./", inside("metadata.google.internal")),
        ("https://printer.LOCAL/", inside("printer.local")),
        ("https://a.localhost/", inside("a.localhost")),
    ],
)
def test_a_bad_url_is_refused_with_words_that_help(url: str, message: str) -> None:
    with pytest.raises(UrlRefused) as refused:
        check_url(url)

    assert str(refused.value) == message


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9000/", "http://localhost:9000/", "http://[::1]:9000/", "https://localhost/"]
)
def test_development_may_call_its_own_machine_by_plain_http(url: str) -> None:
    check_url(url, allow_http=True, allowed_networks=[LOOPBACK])


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/", "http://[fe80::1]/", "http://10.0.0.1/", "http://receiver:9000/", "ftp://8.8.8.8/"],
)
def test_development_may_call_nothing_else(url: str) -> None:
    with pytest.raises(UrlRefused):
        check_url(url, allow_http=True, allowed_networks=[LOOPBACK])


def test_the_answers_keep_their_order_and_lose_their_repeats() -> None:
    found = resolve("partner.example", 443, timeout=SECOND, look_up=answering("2606:4700::1", "8.8.8.8", "8.8.8.8"))

    assert found == [ip_address("2606:4700::1"), ip_address("8.8.8.8")]


@pytest.mark.parametrize("answers", [("8.8.8.8", "10.0.0.1"), ("10.0.0.1", "8.8.8.8"), ("8.8.8.8", "fd00::1")])
def test_one_refused_address_refuses_the_host_whole(answers: tuple[str, ...]) -> None:
    with pytest.raises(AddressRefused):
        resolve("partner.example", 443, timeout=SECOND, look_up=answering(*answers))


def test_the_refusal_names_host_address_and_kind() -> None:
    with pytest.raises(AddressRefused) as refused:
        resolve("partner.example", 443, timeout=SECOND, look_up=answering("10.0.0.1"))

    assert str(refused.value) == "partner.example answers with 10.0.0.1, which may not be called: private"


def test_a_host_is_looked_up_once() -> None:
    asked: list[tuple[str, int]] = []

    def noting(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["8.8.8.8"]

    resolve("partner.example", 8443, timeout=SECOND, look_up=noting)

    assert asked == [("partner.example", 8443)]


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "127.0.0.1"])
def test_the_system_resolver_finds_loopback_behind_numbers_and_it_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused):
        resolve(host, 443, timeout=SECOND)


def test_a_host_without_an_address_is_not_found() -> None:
    with pytest.raises(LookUpFailed, match=r"^partner\.example has no address$"):
        resolve("partner.example", 443, timeout=SECOND, look_up=answering())


def test_a_host_that_does_not_exist_is_not_found() -> None:
    def failing(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(LookUpFailed):
        resolve("partner.example", 443, timeout=SECOND, look_up=failing)


def test_hanging_name_servers_cost_one_timeout_each_and_a_capped_number_of_threads() -> None:
    released, asked = threading.Event(), threading.Semaphore(0)

    def hanging(host: str, port: int) -> list[str]:
        asked.release()
        released.wait()
        return ["8.8.8.8"]

    try:
        for _ in range(LOOK_UPS_AT_ONCE):
            with pytest.raises(LookUpFailed, match=r"^partner\.example was not found within 0\.01 s$"):
                resolve("partner.example", 443, timeout=timedelta(seconds=0.01), look_up=hanging)
        with pytest.raises(LookUpFailed, match="was not looked up: 16 look-ups wait for their name servers already"):
            resolve("other.example", 443, timeout=timedelta(seconds=0.01), look_up=answering("8.8.8.8"))
    finally:
        released.set()

    assert resolve("other.example", 443, timeout=timedelta(seconds=30), look_up=answering("8.8.8.8")) == [
        ip_address("8.8.8.8")
    ]


# Our own places (S19).

OURS = OwnPlaces(
    sites=["https://Removal.example/base", "removal.example", ".staff.example", "198.51.100.7", "*", "[2606:4700::7]"],
    services=[
        "postgresql://user:p%40ss@db.example:6432/removal?sslmode=require",
        "amqp://one:pw@10.1.0.1,10.1.0.2:5673//",
        "redis://[::1]/0",
        "postgresql://:5432",
        "filesystem://localhost",
    ],
)
ON_THIS_MACHINE = OwnPlaces(
    sites=["http://127.0.0.1:8000", "127.0.0.1", "localhost", "[::1]"], services=["postgresql://::1:5432"]
)


@pytest.mark.parametrize(
    ("places", "host", "port"),
    [
        (OURS, "removal.example", 443),
        (OURS, "removal.example", 8443),
        (OURS, "staff.example", 443),
        (OURS, "desk.staff.example", 443),
        (OURS, "198.51.100.7", 443),
        (OURS, "::ffff:198.51.100.7", 443),
        (OURS, "2606:4700::7", 443),
        (OURS, "db.example", 6432),
        (OURS, "db.example", 443),
        (OURS, "10.1.0.1", 5672),
        (OURS, "10.1.0.2", 443),
        (OURS, "localhost", 6379),
        (OURS, "127.0.0.1", 6379),
        (ON_THIS_MACHINE, "127.0.0.1", 8000),
        (ON_THIS_MACHINE, "127.9.9.9", 8000),
        (ON_THIS_MACHINE, "::1", 5432),
        (ON_THIS_MACHINE, "0.0.0.0", 5432),
    ],
)
def test_our_own_places_are_known(places: OwnPlaces, host: str, port: int) -> None:
    assert places.has(host, port)


@pytest.mark.parametrize(
    ("places", "host", "port"),
    [
        (OURS, "hooks.example.com", 443),
        (OURS, "hooks.removal.example", 443),
        (OURS, "notstaff.example", 443),
        (OURS, "10.1.0.3", 5672),
        (OURS, "127.0.0.1", 5432),
        (OURS, "localhost", 8000),
        (ON_THIS_MACHINE, "127.0.0.1", 8001),
        (ON_THIS_MACHINE, "localhost", 443),
        (ON_THIS_MACHINE, "::1", 443),
        (OwnPlaces(sites=["*"]), "anything.example", 443),
    ],
)
def test_other_places_are_not_ours(places: OwnPlaces, host: str, port: int) -> None:
    assert not places.has(host, port)


@pytest.mark.parametrize(
    "url",
    [
        *["https://removal.example/hook", "https://REMOVAL.example./hook", "https://desk.staff.example/"],
        *["https://db.example/", "https://10.1.0.1/", "https://localhost:6379/", "https://127.0.0.1:6379/"],
    ],
)
def test_a_url_of_our_own_may_not_be_saved_even_in_an_allowed_network(url: str) -> None:
    with pytest.raises(UrlRefused, match="is this service itself, or its database or broker; write the partner's"):
        check_url(url, allowed_networks=[LOOPBACK, ip_network("10.0.0.0/8")], own_places=OURS)


def test_a_name_with_an_address_of_our_own_is_refused() -> None:
    with pytest.raises(AddressRefused) as refused:
        resolve(
            "partner.example",
            443,
            allowed_networks=[ip_network("10.0.0.0/8")],
            own_places=OwnPlaces(services=["amqp://10.1.0.1"]),
            timeout=SECOND,
            look_up=answering("10.2.0.1", "10.1.0.1"),
        )

    assert str(refused.value) == "partner.example answers with 10.1.0.1, which is this service's own"


def test_a_name_with_the_address_of_our_database_is_refused_and_the_database_looked_up_once_a_minute() -> None:
    asked: list[str] = []

    def noting(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["10.1.0.1"] if host == "db.example" else ["10.1.0.1", "10.2.0.1"]

    places = OwnPlaces(services=["postgresql://db.example/removal"])
    for _ in range(2):
        with pytest.raises(AddressRefused):
            resolve(
                "partner.example",
                443,
                allowed_networks=[ip_network("10.0.0.0/8")],
                own_places=places,
                timeout=timedelta(seconds=30),
                look_up=noting,
            )

    assert asked == ["partner.example", "db.example", "partner.example"]


@pytest.mark.parametrize(("port", "refused"), [(5432, True), (9000, False)])
def test_a_database_found_on_this_machine_is_refused_at_its_port_only(port: int, refused: bool) -> None:
    places = OwnPlaces(services=["postgresql://db/removal"])

    found = places.find([ip_address("127.0.0.1")], port, timeout=SECOND, look_up=answering("127.0.0.1"))

    assert (found is not None) == refused


def test_the_address_of_our_site_may_be_a_partners_too() -> None:
    places = OwnPlaces(sites=["removal.example"])

    found = places.find([ip_address("8.8.8.8")], 443, timeout=SECOND, look_up=answering("8.8.8.8"))

    assert found is None


def test_a_service_that_cannot_be_looked_up_refuses_nobody() -> None:
    def failing(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    places = OwnPlaces(services=["postgresql://db.example/removal"])

    assert places.find([ip_address("8.8.8.8")], 443, timeout=SECOND, look_up=failing) is None
