"""Ids that others see: random enough not to be guessed, and in order of time."""

import secrets
import time
import uuid

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_id() -> uuid.UUID:
    """Make a 128-bit id: 48 bits of milliseconds since 1970, 80 random ones (the layout of a ULID)."""
    return uuid.UUID(int=(time.time_ns() // 1_000_000) << 80 | secrets.randbits(80))


def new_ulid() -> str:
    """Make such an id in the 26 letters and digits that people read out to each other (Crockford base 32)."""
    number = new_id().int
    return "".join(CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))
