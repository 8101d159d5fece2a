"""Reads a WordPress export (WXR 1.2): which of its items are public, and why each other one is not.

WXR is RSS 2.0 with elements of its own; WordPress documents it in wp-admin/includes/export.php. Whatever this module
does not understand is left out or refused, because what it calls public is handed to others and cannot be called back.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Final, Protocol
from urllib.parse import urlsplit

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

VERSION: Final = "1.2"
CONTENT_TYPES: Final = frozenset({"post", "page", "attachment"})

_CHUNK_BYTES = 64 * 1024
_NUMBER = re.compile(r"[0-9]{1,19}")  # a bigint in WordPress's own table
_WORDPRESS_ELEMENT = re.compile(r"\{https?://wordpress\.org/export/[\d.]+/\}(?P<name>\w+)")
_CHANNEL = ["rss", "channel"]
_ITEM = [*_CHANNEL, "item"]
_HEAD_FIELDS = frozenset({"wp:wxr_version", "wp:base_blog_url"})
# WordPress writes all five for every item. One that is missing is not taken for "no password" or "no parent".
_ITEM_FIELDS = frozenset({"wp:post_id", "wp:post_type", "wp:status", "wp:post_parent", "wp:post_password"})


class Unreadable(Exception):
    """The export cannot be read to its end. Nothing that was read from it may be used."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"Line {line}: {message}")
        self.line = line
        self.reason = message


class NotXml(Unreadable):
    """The file is not well-formed XML."""


class CutOff(Unreadable):
    """The file ends before the export does."""


class Hostile(Unreadable):
    """The file declares a document type or entities, which can read other files or fill the memory."""


class NotAnExport(Unreadable):
    """The file is XML, but not a WordPress export of a site."""


class UnknownVersion(Unreadable):
    """The export has a format version other than 1.2."""


class BrokenItem(Unreadable):
    """One of the elements that decide is missing, there twice, or makes no sense."""


class RepeatedItem(Unreadable):
    """Two items have the same number; which of them is public cannot be told."""


class Reason(StrEnum):
    """Why an item is left out."""

    NOT_CONTENT = "not content"  # a menu item, a revision, or a type that a plugin has added
    DRAFT = "draft"
    PENDING = "pending"
    SCHEDULED = "scheduled"
    PRIVATE = "private"
    TRASH = "trash"
    UNKNOWN_STATUS = "unknown status"
    PASSWORD = "password protected"  # noqa: S105 (a reason, not a password)
    PARENT_LEFT_OUT = "parent is left out"
    PARENT_MISSING = "parent is not in the file"


_REASONS = {
    "auto-draft": Reason.DRAFT,
    "draft": Reason.DRAFT,
    "pending": Reason.PENDING,
    "future": Reason.SCHEDULED,
    "private": Reason.PRIVATE,
    "trash": Reason.TRASH,
}


@dataclass(frozen=True)
class Public:
    """An item that anyone may read, such as ``post:123``."""

    item: str


@dataclass(frozen=True)
class LeftOut:
    """An item that must not be released.

    It carries no title: that of a private post is private too, and the number is enough to find it in WordPress.
    """

    item: str
    reason: Reason


@dataclass(frozen=True)
class Export:
    """One site's export. ``entries`` can be gone through once, and reads the file as it goes."""

    subject: str
    entries: Iterator[Public | LeftOut]


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read(stream: Readable) -> Export:
    """Read the head of an export, and its items as they are asked for, each exactly once.

    The subject is ``site:`` and the address of the site: its host, and its port and path if it has them, since the
    sites of one network may share a host and each counts its items from 1. Attachments come after everything else:
    they are as public as their parent, which may stand behind them in the file.

    Raises Unreadable, from here or from ``entries``. Use nothing before ``entries`` has come to its end.
    """
    reader = _Reader(stream)
    elements = reader.items()
    first = next(elements, None)  # the head stands before it, so from here on it is known
    return Export(subject=_subject(reader), entries=_entries(chain([first] if first else [], elements)))


@dataclass(frozen=True)
class _Element:
    """An ``<item>`` as it stands in the file, and where."""

    line: int
    fields: dict[str, str]


@dataclass(frozen=True)
class _Item:
    post_type: str
    number: int
    status: str
    parent: int
    has_password: bool

    @property
    def name(self) -> str:
        return f"{self.post_type}:{self.number}"


def _subject(reader: "_Reader") -> str:
    version, address = reader.head.get("wp:wxr_version"), reader.head.get("wp:base_blog_url")
    if version is None or address is None:
        raise NotAnExport(
            reader.line,
            "this is not a WordPress export: nothing before its first item says <wp:wxr_version> and"
            " <wp:base_blog_url>. Make one in WordPress under Tools, Export, All content.",
        )
    if version != VERSION:
        raise UnknownVersion(reader.line, f"the export has format version {version!r}; only {VERSION} can be read.")
    try:
        url = urlsplit(address)
        host, port = url.hostname, url.port
    except ValueError:
        host = None
    if not host:
        raise NotAnExport(reader.line, "<wp:base_blog_url> is not an address such as https://example.com.")
    return f"site:{host}{f':{port}' if port else ''}{url.path.rstrip('/')}"


# Judging


def _entries(elements: Iterable[_Element]) -> Iterator[Public | LeftOut]:
    """Judge each item. What is remembered of one is a few numbers, whatever it holds."""
    verdicts: dict[int, Reason | None] = {}  # None is public
    parents: dict[int, int] = {}  # of attachments, which wait for the verdict on their parent
    for element in elements:
        item = _make_item(element)
        reason = _reason(item)
        is_known = item.number in verdicts or item.number in parents
        # A menu item is exported once for each menu it is in.
        if is_known and not (reason is verdicts.get(item.number) is Reason.NOT_CONTENT):
            raise RepeatedItem(element.line, f"{item.name} has the number of an earlier item. Make a new export.")
        if reason is None and item.post_type == "attachment" and item.parent:
            parents[item.number] = item.parent
        else:
            verdicts[item.number] = reason
            yield _entry(item.name, reason)
    for number in parents:
        yield _entry(f"attachment:{number}", _inherit(number, parents, verdicts))


def _make_item(element: _Element) -> _Item:
    line, fields = element.line, element.fields
    missing = sorted(_ITEM_FIELDS - fields.keys())
    if missing:
        raise BrokenItem(line, f"an item has no <{missing[0]}>. Make a new export with WordPress itself.")
    # Not stripped: a single space is a password too.
    has_password = fields["wp:post_password"] != ""
    post_type, number, parent = (fields[name].strip() for name in ("wp:post_type", "wp:post_id", "wp:post_parent"))
    # Both become part of names that are printed and stored.
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", post_type):
        raise BrokenItem(line, "<wp:post_type> is not the name of a type, such as post.")
    if not (_NUMBER.fullmatch(number) and _NUMBER.fullmatch(parent)):
        raise BrokenItem(line, "<wp:post_id> or <wp:post_parent> is not a number.")
    return _Item(
        post_type=post_type,
        number=int(number),
        status=fields["wp:status"].strip(),
        parent=int(parent),
        has_password=has_password,
    )


def _entry(name: str, reason: Reason | None) -> Public | LeftOut:
    return Public(name) if reason is None else LeftOut(name, reason)


def _reason(item: _Item) -> Reason | None:
    """Find why an item is left out for what it is itself; its parent comes later."""
    if item.post_type not in CONTENT_TYPES:
        return Reason.NOT_CONTENT
    if item.status != "publish" and not (item.post_type == "attachment" and item.status == "inherit"):
        return _REASONS.get(item.status, Reason.UNKNOWN_STATUS)
    return Reason.PASSWORD if item.has_password else None


def _inherit(number: int, parents: dict[int, int], verdicts: dict[int, Reason | None]) -> Reason | None:
    """Settle an attachment, and every attachment between it and the first parent that is settled."""
    between: dict[int, None] = {}
    ancestor = number
    while ancestor in parents and ancestor not in verdicts and ancestor not in between:
        between[ancestor] = None
        ancestor = parents[ancestor]
    reason = verdicts.get(ancestor, Reason.PARENT_MISSING)  # also where attachments name each other in a circle
    if reason not in (None, Reason.PARENT_MISSING):
        reason = Reason.PARENT_LEFT_OUT
    verdicts.update(dict.fromkeys(between, reason))
    return reason


# Parsing


class _Reader:
    """The target of the XML parser: keeps the few texts that decide, and never builds a tree."""

    def __init__(self, stream: Readable) -> None:
        self.head: dict[str, str] = {}
        self._stream = stream
        self._parser = DefusedXMLParser(target=self, forbid_dtd=True)
        self._expat = self._parser.parser
        self._path: list[str] = []
        self._text: list[str] | None = None  # of the field we are in
        self._item = _Element(line=0, fields={})
        self._complete: list[_Element] = []  # and not yet given out

    @property
    def line(self) -> int:
        """Say which line the parser has come to."""
        return int(self._expat.CurrentLineNumber)

    def items(self) -> Iterator[_Element]:
        while chunk := self._stream.read(_CHUNK_BYTES):
            self._feed(chunk)
            yield from self._complete
            self._complete.clear()
        try:
            self._parser.close()
        except ParseError as error:
            if not self._path:
                raise self._not_xml(error) from error
            raise CutOff(self.line, "the export ends in the middle. Copy the file again, or make a new one.") from error

    def _feed(self, chunk: bytes) -> None:
        try:
            self._parser.feed(chunk)
        except DefusedXmlException as error:
            raise Hostile(self.line, "a document type or an entity is declared, which WordPress never does.") from error
        except (ParseError, LookupError, ValueError) as error:  # the last two: an encoding that Python cannot read
            raise self._not_xml(error) from error

    def _not_xml(self, error: Exception) -> NotXml:
        return NotXml(self.line, f"this is not XML ({error}). If the export is a zip file, unpack it.")

    # What the parser calls

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append(_WORDPRESS_ELEMENT.sub(r"wp:\g<name>", tag))
        if self._path == _ITEM:
            self._item = _Element(self.line, {})
        elif self._fields() is not None:
            self._text = []

    def data(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def end(self, tag: str) -> None:
        fields = self._fields()
        if fields is not None and self._text is not None:
            name = self._path[-1]
            if name in fields:
                raise BrokenItem(self.line, f"<{name}> is there twice.")
            fields[name] = "".join(self._text)
            self._text = None
        elif self._path == _ITEM:
            self._complete.append(self._item)
        self._path.pop()

    def _fields(self) -> dict[str, str] | None:
        """Find where the text of the element we are in is kept; that of most is not."""
        name = self._path[-1]
        if name in _HEAD_FIELDS and self._path[:-1] == _CHANNEL:
            return self.head
        if name in _ITEM_FIELDS and self._path[:-1] == _ITEM:
            return self._item.fields
        return None
