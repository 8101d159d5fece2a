"""How states, ranges and data are said on a page."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.utils import timezone
from django.utils.safestring import SafeString

from partners.admin import badge
from partners.models import Partner
from removal import health
from removal.models import Delivery, Notice

TONES = {
    "good": "live open delivered completed fulfilled sealed granted finished",
    "wait": "onboarding paused held waiting sending received planned asked in_progress partially_completed "
    "partially_fulfilled building due_soon running",
    "bad": "suspended quarantined refused unreachable abandoned rejected overdue silent ongoing cut_off",
}
TONE_OF = {state: tone for tone, states in TONES.items() for state in states.split()}


def state_badge(state: str, word: str = "") -> SafeString:
    """Show a state in its colour, in its own word or another. One that is neither good nor bad is calm."""
    return badge(word or state.replace("_", " "), TONE_OF.get(state, "calm"))


def handling_badge(handling: str) -> SafeString:
    return state_badge(handling, Notice.Handling(handling).label)


def delivery_word(state: str, partner: Partner) -> str:
    """Say how sending stands: what waits for a partner that is paused, or not live yet, is held."""
    is_held = state == Delivery.State.WAITING and partner.state != Partner.State.LIVE
    return "held" if is_held else state


def capped(count: int) -> str:
    """Write a count that stopped at ``health.MOST``, such as 2,000+."""
    return f"{health.MOST:,}+" if count > health.MOST else f"{count:,}"


def span(first: int | None, last: int | None) -> str:
    """Name a range of numbers; a reminder has none."""
    if first is None:
        return "none: a reminder"
    return str(first) if first == last else f"{first} to {last}"


def spans(ranges: Sequence[tuple[int, int]], *, most: int = 20) -> str:
    shown = [span(first, last) for first, last in ranges[:most]]
    more = len(ranges) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "") or "-"


def moment(at: datetime) -> str:
    """Write a time as the admin writes those of plain fields."""
    return f"{timezone.localtime(at):%Y-%m-%d %H:%M}"


def as_json(value: Any) -> str:
    """Write data for people: indented, letters as they are."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def as_hex(digest: bytes | memoryview | None) -> str:
    return bytes(digest).hex() if digest else "-"
