"""How a partner is told of subjects, items, requests and times: as they are, or in a form that only it can match.

Two partners with hashed identifiers that compare what they were told share release names, days and counts, and no name
of a person's content (docs/decisions/0016-least-knowledge.md). From a partner nothing is hidden that it holds.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from partners import models
from partners.identifiers import IdentifierKey
from partners.keys import identifier_keys
from partners.models import Partner


class IdentifierKeyMissing(Exception):
    """This partner's identifiers are hashed, and it has no key: nothing may be told, lest it be told raw."""


@dataclass(frozen=True)
class Identifiers:
    """One partner's names for things. Without a ``key`` they are the platform's own."""

    key: IdentifierKey | None = None

    @classmethod
    def of(cls, partner_id: int, chosen: str) -> "Identifiers":
        """Open those of a partner whose ``Partner.identifiers`` is known. Raw ones cost no look-up."""
        if chosen == Partner.Identifiers.RAW:
            return RAW
        keys = identifier_keys(partner_id=partner_id)
        if not keys:
            raise IdentifierKeyMissing(f"Run manage.py partner identifiers for the partner with id {partner_id}.")
        return cls(keys[0])

    @classmethod
    def for_partner(cls, partner_id: int) -> "Identifiers":
        """Open those that a partner is told today."""
        return cls.of(partner_id, Partner.objects.values_list("identifiers", flat=True).get(pk=partner_id))

    @classmethod
    def ever_given(cls, partner_id: int) -> list["Identifiers"]:
        """Open all that a partner may answer in: what it was told once stays good, whatever is chosen since."""
        return [RAW, *(cls(key) for key in identifier_keys(partner_id=partner_id))]

    @property
    def is_raw(self) -> bool:
        return self.key is None

    def subject(self, key: str) -> str:
        return self.key.subject(key) if self.key else key

    def item(self, subject: str, item: str) -> str:
        return self.key.item(subject, item) if self.key else item

    def items(self, subject: str, items: list[str]) -> list[str]:
        """Name items of one subject: raw ones in the order given, hashed ones in their own."""
        return self.key.items(subject, items) if self.key else items

    def request(self, public_id: str) -> str:
        return self.key.request(public_id) if self.key else public_id

    def time(self, moment: datetime) -> datetime:
        """Say when: to the second, or only the day, since a moment finds its like in another partner's messages."""
        if self.is_raw:
            return moment
        return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


RAW = Identifiers()


@dataclass(frozen=True)
class Choice:
    """How a partner is told of things, and every key it needs for that, the one in force first."""

    identifiers: str
    keys: list[models.IdentifierKey]


def choice_of(partner_id: int) -> Choice:
    """Read what the partner itself may know of its identifiers: all of it, the keys included."""
    partner = Partner.objects.get(pk=partner_id)
    return Choice(partner.identifiers, list(partner.identifier_keys.order_by("-id")))
