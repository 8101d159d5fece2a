"""The removal service, as this partner calls it."""

import json
import re
import urllib.request
from collections.abc import Sequence
from datetime import datetime
from email.message import Message
from http.client import HTTPException
from urllib.parse import urljoin, urlsplit

from partners import signing
from partners.reference.notices import UNREADABLE, Item, read_items

SERVICE_TIMEOUT_SECONDS = 10

# What a call may raise. Whatever it was, it means to ask again later.
NO_USABLE_ANSWER = (OSError, HTTPException, *UNREADABLE)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow nothing: urllib would take our key along to wherever it is sent."""


# Nor does any proxy of the environment get to see the key.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)


class Service:
    """The removal service, as this partner calls it. Every call may raise each of ``NO_USABLE_ANSWER``."""

    def __init__(self, *, url: str, api_key: str) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}

    def public_keys(self, *, now: datetime) -> list[signing.Ed25519PublicKey]:
        """Fetch the keys that the service signs with, without those that are retired."""
        body, _ = self._ask(f"{self._url}/.well-known/removal-notices")
        return [
            signing.Ed25519PublicKey.from_text(key["public_key"])
            for key in json.loads(body)["keys"]
            if key["algorithm"] == "ed25519"
            and not (key.get("retire_at") and datetime.fromisoformat(key["retire_at"]) <= now)
        ]

    def items(self, url: str) -> set[Item]:
        """Fetch a list of items, page by page."""
        items: set[Item] = set()
        page: str | None = url
        while page:
            body, headers = self._ask(page)
            for line in body.splitlines():
                items.update(read_items(line))
            next_link = re.search(r'<([^>]*)>[^,]*;\s*rel="?next\b', headers.get("Link", ""))  # RFC 8288
            page = urljoin(page, next_link[1]) if next_link else None
        return items

    def acknowledge(self, acknowledgements: Sequence[object]) -> dict[int, tuple[str, str]]:
        """Post answers and return those that were refused: code and message by sequence."""
        content = json.dumps({"acknowledgements": acknowledgements}).encode()
        body, _ = self._ask(f"{self._url}/v1/acknowledgements", content)
        return {line["sequence"]: (line["code"], line.get("message", "")) for line in json.loads(body)["refused"]}

    def _ask(self, url: str, content: bytes | None = None) -> tuple[bytes, Message]:
        # Whoever is asked learns our key, so it is always this service, whatever a message or a page says.
        home = urlsplit(self._url)
        address = urlsplit(url)._replace(scheme=home.scheme, netloc=home.netloc).geturl()
        request = urllib.request.Request(address, content, self._headers)  # noqa: S310 (the options let in http alone)
        with _opener.open(request, timeout=SERVICE_TIMEOUT_SECONDS) as response:
            return response.read(), response.headers
