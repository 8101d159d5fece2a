"""The program: its options, and how its parts are put together and run."""

import argparse
import logging
import os
import re
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from partners import signing
from partners.reference import holdings
from partners.reference.client import Service
from partners.reference.errands import keep_calling
from partners.reference.partner import Partner
from partners.reference.receiver import Receiver
from partners.reference.store import Store

T = TypeVar("T")


def option(read: Callable[[str], T]) -> Callable[[str], T]:
    """Let argparse say why a value was refused, and not what it was: it may be a secret."""

    def read_option(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read_option


def read_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("expected HOST:PORT, with port 0 for any free one")
    return host, int(port)


def read_url(text: str) -> str:
    if not re.match("https?://[^/]", text):
        raise ValueError("expected http://… or https://…")
    return text


def read_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 3600:
        raise ValueError("expected 0 to 3600 seconds")
    return seconds


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m partners.reference",
        description="A partner that receives removal notices, removes, and says what it did.",
        epilog="Keys may stay off the command line: REFERENCE_API_KEY, and REFERENCE_SECRET with one or more secrets.",
        allow_abbrev=False,
    )
    hmac_secret, public_key = option(signing.HmacSecret.from_text), option(signing.Ed25519PublicKey.from_text)
    add = parser.add_argument
    add("--slug", required=True, help="the name the service has for this partner")
    add("--database", required=True, type=Path, metavar="FILE", help="this partner's SQLite file")
    add("--listen", type=option(read_address), default="127.0.0.1:0", metavar="HOST:PORT", help="default: %(default)s")
    add("--service-url", type=option(read_url), metavar="URL", help="where the removal service is")
    add("--api-key", metavar="KEY", help="this partner's key to the service")
    add("--secret", type=hmac_secret, action="append", metavar="whsec_…", help="v1; both, while it is changed")
    add("--public-key", type=public_key, action="append", metavar="whpk_…", help="v1a; default: ask the service")
    add("--holds", type=Path, metavar="FILE", help='what is held: lines of {"subject", "items"}; default: everything')
    add("--refuse-first", type=int, default=0, metavar="N", help="answer 503 to the first N requests")
    add("--delay", type=option(read_seconds), default=0.0, metavar="SECONDS", help="wait before each answer")
    add("--no-acknowledge", action="store_true", help="do the work, but do not call the service's API")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    options = parser.parse_args(arguments)
    api_key = options.api_key or os.environ.get("REFERENCE_API_KEY", "")
    secrets = os.environ.get("REFERENCE_SECRET", "").split()
    try:
        keys = options.secret or [signing.HmacSecret.from_text(secret) for secret in secrets]
    except ValueError as error:
        parser.error(f"REFERENCE_SECRET: {error}")
    keys += options.public_key or []
    if not keys and not options.service_url:
        parser.error("give --secret, --public-key or --service-url: without a key no message can be verified")
    if not options.no_acknowledge and not (options.service_url and api_key):
        parser.error("give --service-url and --api-key, or --no-acknowledge")

    logging.basicConfig(format="%(levelname)s %(message)s")
    service = Service(url=options.service_url, api_key=api_key) if options.service_url else None
    try:
        with closing(Store(options.database)) as store:
            if options.holds:
                with store.transaction() as db:
                    holdings.load(db, options.holds)
            partner = Partner(
                slug=options.slug,
                store=store,
                keys=keys,
                key_service=None if options.public_key else service,
                refuse_first=options.refuse_first,
            )
            with Receiver(options.listen, partner=partner, delay_seconds=options.delay) as receiver:
                serve(receiver, service=None if options.no_acknowledge else service)
    except (OSError, sqlite3.Error, ValueError) as error:
        parser.error(str(error))


def serve(receiver: Receiver, *, service: Service | None) -> None:
    """Receive messages, and call the service if there is one, until SIGINT or SIGTERM."""
    # Blocked here, and so in the threads started below: the signal waits for sigwait.
    stop_signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    if service:
        threading.Thread(target=keep_calling, args=[receiver.partner, service], daemon=True).start()
    host, port = receiver.server_address[:2]
    sys.stdout.write(f"listening on http://{host!s}:{port}/\n")
    sys.stdout.flush()
    signal.sigwait(stop_signals)
    receiver.shutdown()


if __name__ == "__main__":
    main()
