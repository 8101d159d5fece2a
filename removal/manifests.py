"""Reads a manifest: NDJSON, a line a subject, ``{"subject": "site:123", "items": ["post:9"]}``.

What the gate let through (removal.gate) is a manifest as it is: its lines say ``"container_state": "public"`` too, and
its last line holds their number and digest.

At most one line is in memory. Cutting into lines and reading JSON strictly are here for every other NDJSON body too;
other ways to write a manifest are in removal.formats.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NoReturn

from removal.ledger import Entry, InvalidManifest
from removal.preferences import PUBLIC

MAX_LINE_BYTES = 64 * 1024 * 1024
CUT_BYTES = 64 * 1024
MAX_KEY_BYTES = 512


class Unreadable(Exception):
    """This is not JSON that two readers would understand in the same way. The message quotes nothing of it."""


# Told of each line that cannot be taken. If it returns, the rest is read too.
OnFault = Callable[[InvalidManifest], None]


def refuse(fault: InvalidManifest) -> NoReturn:
    """Take nothing of a manifest with a broken line."""
    raise fault


def read_ndjson(chunks: Iterable[bytes], on_fault: OnFault = refuse) -> Iterator[Entry]:
    """Read a manifest that comes in pieces of any size. A line that cannot be taken is told to ``on_fault``.

    The first line says whether it is the gate's output; that is believed only with its last line.
    """
    lines = split_lines(chunks)
    first = next(lines, None)
    if first is None:
        return
    lines = chain([first], lines)
    if _is_from_gate(first[1]):
        yield from _read_gate_output(lines, on_fault)
        return
    for number, line in lines:
        try:
            entry = _read_entry(number, line)
        except (Unreadable, ValueError) as error:
            on_fault(InvalidManifest(number, str(error)))
        else:
            yield entry


def split_lines(chunks: Iterable[bytes], *, limit: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | None]]:
    """Cut pieces of any size into (number from 1, line). Blank lines are counted and left out.

    A line of more than ``limit`` bytes is read past, and comes as None.
    """
    number = 1
    line = bytearray()
    # In small cuts: a large piece of short lines would take twenty times its size.
    cuts = (chunk[start : start + CUT_BYTES] for chunk in chunks for start in range(0, len(chunk), CUT_BYTES))
    for chunk in cuts:
        rest, *next_lines = chunk.split(b"\n")
        if len(line) <= limit:
            line += rest
        for next_line in next_lines:
            yield from _finish(number, line, limit)
            number += 1
            line = bytearray(next_line)
    yield from _finish(number, line, limit)


def _finish(number: int, line: bytearray, limit: int) -> Iterator[tuple[int, bytes | None]]:
    if len(line) > limit:
        yield number, None
    elif line.strip():
        yield number, bytes(line)


def read_json(text: bytes) -> Any:
    """Read one JSON text (RFC 8259) in UTF-8, with no field twice in an object and no NaN. Raises Unreadable."""
    try:
        return _DECODER.decode(text.decode())
    except UnicodeDecodeError as error:
        raise Unreadable(f"It is not UTF-8 from byte {error.start + 1} on.") from error
    except json.JSONDecodeError as error:
        raise Unreadable(f"It is not JSON at character {error.pos + 1}: {error.msg}.") from error
    except RecursionError as error:
        raise Unreadable("It is nested too deep.") from error
    except ValueError as error:  # Python's own limit on the digits of an integer
        raise Unreadable("A number in it has too many digits.") from error


def _make_object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(fields)
    if len(made) < len(fields):
        raise Unreadable("A field stands twice in one object. Keep one of the two.")
    return made


def _refuse_constant(name: str) -> None:
    raise Unreadable(f"{name} is not a JSON number.")


_DECODER = json.JSONDecoder(object_pairs_hook=_make_object, parse_constant=_refuse_constant)


def _read_entry(number: int, line: bytes | None) -> Entry:
    if line is None:
        raise ValueError(_TOO_LONG)
    entry = read_json(line)
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        if _has_gate_field(entry):
            raise ValueError("It is the gate's, and the first line is not. Send the gate's output as it is, by itself.")
        raise ValueError('Write an object with the fields "subject" and "items", and no others.')
    # No function for what follows, though the gate's lines share it: a call more is felt over millions of lines.
    subject, items = entry["subject"], entry["items"]
    if not _are_plain(subject, items):
        _check_each(subject, items)
    return Entry(number, subject, items)


_FIELDS = {"subject", "items"}
_TOO_LONG = f"It is longer than {MAX_LINE_BYTES >> 20} MiB. Put fewer items on it."


def _are_plain(subject: Any, items: Any) -> bool:
    """Whether all of these are plainly keys. Nearly every line's are, and one by one takes three times as long."""
    if not isinstance(items, list) or not items:
        return False
    keys = [subject, *items]
    try:
        text = "".join(keys)
        text.encode()
    except (TypeError, UnicodeEncodeError):
        return False
    # A character takes up to four bytes.
    return "\0" not in text and min(map(len, keys)) > 0 and max(map(len, keys)) <= MAX_KEY_BYTES // 4


def _check_each(subject: Any, items: Any) -> None:
    """Raises ValueError, which says what is wrong with which."""
    if not isinstance(items, list) or not items:
        raise ValueError("items must be a list of at least one item. Leave out a subject that has none.")
    try:
        check_key(subject)
    except ValueError as error:
        raise ValueError(f"subject: {error}") from error
    for place, item in enumerate(items):
        try:
            check_key(item)
        except ValueError as error:
            raise ValueError(f"items[{place}]: {error}") from error


def check_key(key: object) -> str:
    """Return a subject's or an item's key, if it is one that can be stored and sent. Raises ValueError."""
    if not isinstance(key, str):
        raise ValueError("It must be a string.")  # noqa: TRY004 (for the caller all of these are one kind of fault)
    if not 0 < len(check_text(key).encode()) <= MAX_KEY_BYTES:
        raise ValueError(f"It must have 1 to {MAX_KEY_BYTES} bytes in UTF-8.")
    return key


def check_text(text: str) -> str:
    """Return a text that PostgreSQL and every other JSON reader can hold. Raises ValueError."""
    if "\0" in text:
        raise ValueError("It must not hold NUL characters.")
    try:
        text.encode()
    except UnicodeEncodeError:
        # Not as the cause: its message quotes the text.
        raise ValueError("It must not hold half of a surrogate pair.") from None
    return text


# --- the gate's output ---


def _is_from_gate(line: bytes | None) -> bool:
    if line is None:
        return False
    try:
        return _has_gate_field(read_json(line))
    except Unreadable:
        return b'"container_state"' in line  # or every line after a broken one would be a fault too


def _has_gate_field(fields: Any) -> bool:
    return isinstance(fields, dict) and ("container_state" in fields or "end" in fields)


def _read_gate_output(lines: Iterable[tuple[int, bytes | None]], on_fault: OnFault) -> Iterator[Entry]:
    """Read what ``manage.py gate --out`` wrote, and check it against its last line."""
    so_far = _SoFar()
    number = 0
    for number, line in lines:
        try:
            entry = so_far.take(number, line)
        except (Unreadable, ValueError) as error:
            so_far.is_broken = True
            on_fault(InvalidManifest(number, str(error)))
        else:
            if entry:
                yield entry
    if not so_far.has_ended:
        on_fault(InvalidManifest(number, _CUT_OFF))


_GATE_FIELDS = _FIELDS | {"container_state"}
_END_FIELDS = {"end", "allowed", "excluded", "digest"}
_CUT_OFF = 'The gate\'s last line, {"end": true, ...}, is missing after it. Discard all of it, and ask the gate again.'


class _SoFar:
    """What the lines of the gate's output have added up to so far."""

    def __init__(self) -> None:
        self.is_broken = False  # some line could not be taken, so that its last line is of something else
        self.has_ended = False
        self._items = 0
        self._hash = hashlib.sha256()

    def take(self, number: int, line: bytes | None) -> Entry | None:
        """Take the next line; None is the last one. Raises Unreadable or ValueError."""
        if self.has_ended:
            raise ValueError("It stands after the gate's last line. Send one output of the gate, and nothing else.")
        if line is None:
            raise ValueError(_TOO_LONG)
        fields = read_json(line)
        if isinstance(fields, dict) and "end" in fields:
            self._end(fields)
            return None
        if not isinstance(fields, dict) or fields.keys() != _GATE_FIELDS:
            raise ValueError('Write an object with the fields "subject", "items" and "container_state", and no others.')
        if fields["container_state"] != PUBLIC:
            raise ValueError("container_state must be public: the gate lets nothing else through.")
        subject, items = fields["subject"], fields["items"]
        if not _are_plain(subject, items):
            _check_each(subject, items)
        entry = Entry(number, subject, items)
        self._items += len(entry.items)
        self._hash.update(line)
        self._hash.update(b"\n")
        return entry

    def _end(self, fields: dict[str, Any]) -> None:
        self.has_ended = True
        counts = (fields.get("allowed"), fields.get("excluded"))
        if fields.keys() != _END_FIELDS or fields["end"] is not True or not all(map(_is_count, counts)):
            raise ValueError('The gate\'s last line has the fields "end", "allowed", "excluded" and "digest".')
        if self.is_broken:
            return  # that is told already
        if fields["allowed"] != self._items:
            raise ValueError(f"It counts {fields['allowed']} items, and {self._items} came before it.")
        if fields["digest"] != self._hash.hexdigest():
            raise ValueError("Its digest is not that of the lines before it: they were changed. Ask the gate again.")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0  # True is an int too
