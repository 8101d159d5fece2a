"""The names of subjects, items and requests that only one partner can read: HMAC-SHA256 with a key of its own. Pure.

Published word for word in docs/partner-guide.md: partners compute the same over what they hold.
"""

import base64
from dataclasses import dataclass
from typing import ClassVar

from partners.signing import HmacSecret

SCHEME = "h1:"  # another way of computing them would get another


@dataclass(frozen=True)
class IdentifierKey(HmacSecret):
    """What one partner's identifiers are made with: 32 random bytes, in text ``idk_<base64>``. It signs nothing."""

    prefix: ClassVar[str] = "idk_"

    def subject(self, key: str) -> str:
        return self._name("subject:", key)

    def item(self, subject: str, item: str) -> str:
        """Name an item of a subject, so that equal items of two subjects have nothing in common.

        The subject goes in as its identifier: that has one length, so no two pairs make the same text.
        """
        return self._name(f"item:{self.subject(subject)}:", item)

    def items(self, subject: str, items: list[str]) -> list[str]:
        """Name many items of one subject, in an order of their own: the given one would tell which is which."""
        start = f"item:{self.subject(subject)}:"
        return sorted(self._name(start, item) for item in items)

    def request(self, public_id: str) -> str:
        return self._name("request:", public_id)

    def _name(self, start: str, name: str) -> str:
        digest = self.sign((start + name).encode())
        return SCHEME + base64.urlsafe_b64encode(digest).decode().rstrip("=")
