"""What a message says: notices, and the items they are about."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Item = tuple[str, str]  # the key of a subject and of one of its items

REMOVING_KINDS = {"opt_out", "deletion", "recall"}

# What JSON of an unexpected shape raises.
UNREADABLE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class Notice:
    epoch: int
    sequence: int
    kind: str
    items_total: int
    items: frozenset[Item]
    items_url: str | None  # where the items are, when they are not in ``items``


def read_notice(line: Mapping[str, Any], *, epoch: int) -> Notice:
    """Read one notice of a message. May raise each of ``UNREADABLE``."""
    kind, items_url = line["kind"], line.get("items_url")
    items: frozenset[Item] = frozenset()
    if kind == "reinstatement" or line.get("withdrawn_at"):
        # Nothing to remove. After a reinstatement, past removals stand; and a wish withdrawn before it was sent
        # comes at all only so that the stream has no holes.
        items_url = None
    elif kind == "offboarding":
        items_url = None  # everything that we hold; nothing is listed
    elif kind not in REMOVING_KINDS:
        # We must not say "completed" to what we do not understand.
        raise ValueError(f"unknown kind of notice: {kind}")
    elif items_url is None:
        items = frozenset((line["subject"], item) for held in line["held"] for item in held["items"])
    return Notice(epoch, int(line["sequence"]), kind, int(line["items_total"]), items, items_url)


def read_items(line: bytes) -> list[Item]:
    """Read an NDJSON line ``{"subject", "items"}``. May raise each of ``UNREADABLE``."""
    entry = json.loads(line)
    return [(entry["subject"], item) for item in entry["items"]]
