"""Bodies of any length: in Django's hands, and from a real gunicorn."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Self

import pytest
from django.core.handlers.wsgi import WSGIRequest
from django.db import connection

from partners.models import ApiKey
from removal.api.streams import PIECE_BYTES, BodyCutOff, LengthNeeded, as_ndjson, open_body
from removal.models import ManifestEntry, RemovalRequest
from tests.removal.api.conftest import ndjson

PATIENCE_SECONDS = 30


def request(body: io.RawIOBase | io.BytesIO, **environ: object) -> WSGIRequest:
    return WSGIRequest({"REQUEST_METHOD": "PUT", "wsgi.input": body, **environ})


class Broken(io.RawIOBase):
    """A connection that breaks after its first piece; ``error`` is the server's own way to say so."""

    def __init__(self, error: Exception) -> None:
        self.pieces = iter([b"half"])
        self.error = error

    def read(self, size: int = -1, /) -> bytes:
        for piece in self.pieces:
            return piece
        raise self.error


def test_a_counted_body_is_read_to_its_length_and_no_further() -> None:
    stream = io.BytesIO(b"x" * (PIECE_BYTES + 5) + b"GET / HTTP/1.1")
    pieces = list(open_body(request(stream, CONTENT_LENGTH=str(PIECE_BYTES + 5))))
    assert [len(piece) for piece in pieces] == [PIECE_BYTES, 5]
    assert stream.read() == b"GET / HTTP/1.1"


def test_a_counted_body_that_ends_early_is_cut_off() -> None:
    pieces = open_body(request(io.BytesIO(b"half"), CONTENT_LENGTH="8"))
    assert next(pieces) == b"half"
    with pytest.raises(BodyCutOff):
        next(pieces)


def test_a_terminated_body_is_read_to_its_end() -> None:
    body = io.BytesIO(b"x" * (PIECE_BYTES + 5))
    pieces = open_body(request(body, HTTP_TRANSFER_ENCODING="chunked", **{"wsgi.input_terminated": True}))
    assert [len(piece) for piece in pieces] == [PIECE_BYTES, 5]


@pytest.mark.parametrize("error", [OSError("reset"), ValueError("bad chunk")])
@pytest.mark.parametrize("environ", [{"CONTENT_LENGTH": "8"}, {"wsgi.input_terminated": True}])
def test_a_connection_that_breaks_cuts_the_body_off(error: Exception, environ: dict[str, object]) -> None:
    pieces = open_body(request(Broken(error), **environ))
    assert next(pieces) == b"half"
    with pytest.raises(BodyCutOff):
        next(pieces)


def test_a_body_whose_end_nobody_can_tell_is_refused_at_once() -> None:
    with pytest.raises(LengthNeeded):
        open_body(request(io.BytesIO(b"half"), HTTP_TRANSFER_ENCODING="chunked"))


def test_no_body_is_an_empty_one() -> None:
    assert list(open_body(request(io.BytesIO(b"GET / HTTP/1.1")))) == []


def test_lines_are_written_without_spaces_and_in_utf8() -> None:
    assert as_ndjson([{"a": "ä", "b": [1]}, {}]) == '{"a":"ä","b":[1]}\n{}\n'.encode()


class Gunicorn:
    """The web server that production has, on the test's database."""

    def __init__(self) -> None:
        database = connection.settings_dict
        parts = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
        query = "&".join(f"{name}={database[key]}" for name, key in parts.items() if database[key])
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
            os.set_inheritable(listener.fileno(), True)
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-W", "ignore", "-m", "gunicorn", "removal.config.wsgi"),
                    *("--bind", f"fd://{listener.fileno()}", "--worker-class", "gthread", "--threads", "2"),
                    "--no-control-socket",
                ],
                env=os.environ | {"DATABASE_URL": f"postgresql:///?{query}", "ALLOWED_HOSTS": "127.0.0.1"},
                pass_fds=[listener.fileno()],
                stderr=subprocess.DEVNULL,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_SECONDS)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)


@pytest.fixture
def gunicorn(transactional_db: None) -> Iterator[Gunicorn]:
    with Gunicorn() as server:
        yield server


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def read(http_connection: http.client.HTTPConnection) -> tuple[int, Any]:
    response = http_connection.getresponse()
    answer = response.status, json.loads(response.read())
    http_connection.close()
    return answer


def test_chunked_bodies_reach_us_whole_or_not_at_all(gunicorn: Gunicorn) -> None:
    """One server for all of it: starting one takes longer than everything else here."""
    _, key = ApiKey.create(source="blogs")
    headers = {"Authorization": f"Bearer {key}", "Transfer-Encoding": "chunked"}

    def begin(method: str, path: str, **more: str) -> http.client.HTTPConnection:
        opened = gunicorn.connect()
        opened.putrequest(method, path)
        for name, value in (headers | more).items():
            opened.putheader(name.replace("_", "-"), value)
        opened.endheaders()
        return opened

    def send(method: str, path: str, body: bytes) -> tuple[int, Any]:
        opened = gunicorn.connect()
        opened.request(method, path, body, {"Authorization": f"Bearer {key}", "Idempotency-Key": "a"})
        return read(opened)

    assert send("POST", "/v1/releases", b'{"name": "2024-02", "dataset": "posts"}')[0] == 201

    # a manifest in chunks that end anywhere
    upload = begin("PUT", "/v1/releases/2024-02/manifest")
    body = ndjson(*({"subject": f"site:{n}", "items": ["post:1"]} for n in range(5000)))
    for start in range(0, len(body), 10_007):
        upload.send(chunk(body[start : start + 10_007]))
    upload.send(b"0\r\n\r\n")
    assert read(upload) == (200, {"subjects": 5000, "items": 5000})

    # cut off between two chunks, and by a chunk that is none
    for end in (b"", b"nonsense\r\n"):
        upload = begin("PUT", "/v1/releases/2024-02/manifest")
        upload.send(chunk(ndjson({"subject": "site:1", "items": ["post:1"]})) + end)
        assert upload.sock
        upload.sock.shutdown(socket.SHUT_WR)
        status, problem = read(upload)
        assert (status, problem["code"]) == (400, "body_cut_off")
    # and a counted one
    upload = gunicorn.connect()
    upload.putrequest("PUT", "/v1/releases/2024-02/manifest")
    upload.putheader("Authorization", f"Bearer {key}")
    upload.putheader("Content-Length", "100")
    upload.endheaders(ndjson({"subject": "site:1", "items": ["post:1"]}))
    assert upload.sock
    upload.sock.shutdown(socket.SHUT_WR)
    status, problem = read(upload)
    assert (status, problem["code"]) == (400, "body_cut_off")
    assert ManifestEntry.objects.count() == 5000

    # a bulk import is recorded while it is sent, and answered when it was sent, to a client that reads only then
    upload = begin("POST", "/v1/requests/bulk")
    wishes = [{"idempotency_key": f"key-{n}", "kind": "opt_out", "subject": f"site:{n}"} for n in range(2500)]
    padding = b"\n" * 1000
    for start in range(0, len(wishes), 500):
        upload.send(chunk(ndjson(*wishes[start : start + 500]) + padding * 100))
    upload.send(b"0\r\n\r\n")
    answers = [json.loads(line) for line in upload.getresponse().read().splitlines()]
    assert [answer["status"] for answer in answers] == ["created"] * 2500
    upload.close()

    # a JSON body says how long it is
    upload = begin("POST", "/v1/requests", Idempotency_Key="b")
    upload.send(chunk(b'{"kind": "opt_out", "subject": "site:1"}') + b"0\r\n\r\n")
    status, problem = read(upload)
    assert (status, problem["code"]) == (411, "length_needed")
    assert RemovalRequest.objects.count() == 2500
