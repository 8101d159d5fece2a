"""What the API takes. A field that is not here is an error: no misspelt one is silently left out."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from removal import intake, labels, ledger, statements
from removal.api.fields import (
    MAX_ITEMS,
    SLUG_PATTERN,
    Claim,
    Count,
    Epoch,
    IdempotencyKey,
    Key,
    Label,
    Name,
    Number,
    Outcome,
    Prose,
    Reason,
    Slug,
    Time,
    Usage,
    Usages,
    Word,
    enum,
    one_of,
)
from removal.manifests import check_text
from removal.models import Preference
from removal.preferences import CONTAINER_STATES, Choice


class Said(BaseModel):
    """Something that a caller said."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NewRequest(Said):
    """A wish. ``items`` null means everything of the subject. Only an offboarding names a ``partner`` instead."""

    kind: Literal["opt_out", "deletion", "reinstatement", "offboarding"]
    reason: Reason = "user_request"
    subject: Key | None = None
    partner: Slug | None = None
    items: Annotated[list[Key], Field(max_length=MAX_ITEMS)] | None = None
    usages: Usages = ["all"]
    received_at: Time | None = Field(None, description="When the person asked; missing means now.")
    jurisdiction: Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z0-9]{1,8})?$")] | None = None

    def as_wish(self, *, idempotency_key: str) -> intake.Wish:
        """Raises intake.InvalidWish when its fields contradict each other."""
        return intake.Wish(
            idempotency_key=idempotency_key,
            kind=self.kind,
            subject=self.subject or "",
            partner=self.partner or "",
            items=None if self.items is None else tuple(self.items),
            reason=self.reason,
            usages=tuple(self.usages),
            received_at=self.received_at,
            jurisdiction=self.jurisdiction or "",
        )


class NewExtension(Said):
    """More time for a request. ``person_told_at`` is when the person was told of it, with the reason."""

    reason: Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(check_text)]
    person_told_at: Time | None = None


class BulkRequest(NewRequest):
    """A line of a bulk import: a wish with its own idempotency key."""

    idempotency_key: IdempotencyKey


class RecallLine(Said):
    """A subject of a recall with its items; null means all that the releases hold of it."""

    subject: Key
    items: Annotated[list[Key], Field(min_length=1)] | None = None


class NewRelease(Said):
    """A version of a dataset. The gate keeps out whoever refuses one of its ``usages``."""

    name: Name
    dataset: Name
    source: Label = ""
    usages: Usages = ["all"]


class Sealing(Said):
    """``exclude`` drops what must not be in the release; without it, the release is not sealed."""

    exclude: bool = False
    parts: Annotated[
        int | None, Field(ge=1, le=ledger.MAX_PARTS, description="How many parts the manifest came in, if it did.")
    ] = None


class NewDisclosure(Said):
    """A handover of a release. ``reference`` is its own name, such as a shipment id; a repeat changes nothing."""

    partner: Annotated[str, Field(pattern=SLUG_PATTERN)]
    reference: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(check_text)]
    disclosed_at: Time | None = Field(
        None,
        description="When it was handed over: recorded as a fact, whatever stands in it. Missing means that it is "
        "handed over now: refused (opted_out_content) if somebody has opted out since it was sealed.",
    )
    usages: Usages | None = Field(None, description="Missing means those that the partner is licensed for.")


class PreferenceLine(Said):
    """What one source says a subject allows for one usage, from ``valid_from`` on; missing means from now on."""

    subject: Key
    usage: Usage
    value: Literal["allow", "disallow"]
    source: Annotated[str, AfterValidator(one_of(Preference.Source.values)), enum(Preference.Source.values)]
    valid_from: Time | None = None

    def as_choice(self) -> Choice:
        return Choice(self.subject, self.usage, self.value, self.source, self.valid_from)


class NewLabel(Said):
    """What people call a subject. Null erases it."""

    label: Annotated[str, Field(min_length=1, max_length=labels.MOST_CHARACTERS), AfterValidator(check_text)] | None


class LabelLine(NewLabel):
    """A line of a file of labels."""

    subject: Key


class ItemOutcome(Said):
    subject: Key | None = Field(None, description="Needed where the notice is about several subjects.")
    item: Key
    outcome: Outcome


class Attestation(Said):
    """What the partner says it did. ``backups_expire_by`` needs a date as its detail: 2027-01-31."""

    claim: Claim
    detail: Prose | None = None


class AcknowledgementLine(Said):
    """A partner's word about one notice (``sequence``), or about all numbers up to one (``through``)."""

    sequence: Number | None = None
    through: Number | None = None
    status: Literal["received", "in_progress", "completed", "partially_completed", "rejected"]
    reason: Word = Field("", json_schema_extra={"enum": list(statements.REASONS)})
    detail: Prose = ""
    completed_at: Time | None = None
    outcomes: dict[Outcome, Count] = Field({}, description="How many items ended how. They sum to items_total.")
    items: list[ItemOutcome] = Field(
        [], description="Which item ended how: all of them, in place of outcomes, or some of those that it counts."
    )
    attestations: Annotated[list[Attestation], Field(max_length=100)] = []
    amends: bool = False
    epoch: Epoch | None = Field(None, description="Refused (wrong_epoch) unless it is your stream's.")

    @model_validator(mode="after")
    def _names_one_number(self) -> "AcknowledgementLine":
        if (self.sequence is None) == (self.through is None):
            raise ValueError("Name either a sequence or a through.")
        return self

    def as_statement(self, *, text: str, line: int = 0) -> statements.Statement:
        return statements.Statement(
            status=self.status,
            text=text,
            sequence=self.sequence,
            through=self.through,
            reason=self.reason,
            detail=self.detail,
            completed_at=self.completed_at,
            outcomes=dict(self.outcomes),
            attestations=tuple(attestation.model_dump(exclude_none=True) for attestation in self.attestations),
            amends=self.amends,
            items=[statements.NamedItem(named.subject, named.item, named.outcome) for named in self.items],
            epoch=self.epoch,
            line=line,
        )


class NewEndpoint(Said):
    url: Annotated[str, Field(min_length=1, max_length=2000)]


class NewSigningKey(Said):
    public_key: Annotated[str, Field(max_length=200, description="whpk_ and 32 bytes in base64.")]


KeyId = Annotated[str, Field(pattern=r"^key_[0-9]{1,18}$")]


class ExtensionLine(Said):
    """A wish for more time with one notice. The date stands until it is granted."""

    sequence: Number
    extend_until: Time
    reason: Annotated[Prose, Field(min_length=1)]
    epoch: Epoch | None = None

    def as_wish(self, *, text: str, line: int = 0) -> statements.Wish:
        return statements.Wish(self.sequence, self.extend_until, self.reason, text, self.epoch, line)


# Lines of streams, which ninja does not see in the views.


class ManifestLine(Said):
    """A subject, and which of its items. The manifests that come in are read by removal.manifests, a line at a time."""

    subject: Key
    items: Annotated[list[Key], Field(min_length=1)]


class CandidateLine(Said):
    """A subject, which of its items may go into a release, and the state its container is in."""

    subject: Key
    items: Annotated[list[Key], Field(min_length=1)]
    container_state: Annotated[str, enum(CONTAINER_STATES)]
