"""What comes in and what goes out. A field that is not here is an error: no misspelt one is silently left out."""

import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from removal import intake, ledger, payload, statements
from removal.manifests import check_key, check_text
from removal.models import Preference, Release, RemovalRequest
from removal.models.ledger import NAME_PATTERN
from removal.models.subjects import USAGES
from removal.preferences import CONTAINER_STATES, Choice

MAX_ITEMS = 100_000  # of one request
MAX_NUMBER = 2**63 - 1  # PostgreSQL's bigint

# What a partner may attest. The list grows; no claim here is ever "verified".
CLAIMS = (
    "removed_from_corpus",
    "derived_data_removed",
    "excluded_from_future_training",
    "sub_recipients_notified",
    "backups_expire_by",
    "model_retrained_without",
    "model_unchanged",
)


def _one_of(words: Collection[str]) -> Callable[[str], str]:
    def check(word: str) -> str:
        if word not in words:
            raise ValueError(f"Write one of: {', '.join(words)}.")
        return word

    return check


def _enum(words: Collection[str]) -> Any:
    return Field(json_schema_extra={"enum": list(words)})


TIME_PATTERN = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _read_time(value: object) -> datetime:
    """Read RFC 3339 with its offset; pydantic alone would take numbers too."""
    fault = "Write a time with its offset, such as 2026-11-24T00:20:00Z."
    if not (isinstance(value, str) and TIME_PATTERN.fullmatch(value)):
        raise ValueError(fault)
    try:
        time = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(fault) from error
    if time.year < 1970:
        raise ValueError("It lies before 1970, which must be a mistake.")
    return time


Time = Annotated[datetime, BeforeValidator(_read_time), WithJsonSchema({"type": "string", "format": "date-time"})]
Key = Annotated[str, AfterValidator(check_key), Field(description="1 to 512 bytes in UTF-8.")]
# The length comes first: pydantic puts it into words, and into the description, only for what is still a plain string.
Word = Annotated[str, Field(max_length=40), AfterValidator(check_text)]
Label = Annotated[str, Field(max_length=200), AfterValidator(check_text)]
Prose = Annotated[str, Field(max_length=4000), AfterValidator(check_text)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Number = Annotated[int, Field(ge=1, le=MAX_NUMBER)]
Count = Annotated[int, Field(ge=0, le=MAX_NUMBER)]
Usage = Annotated[str, AfterValidator(_one_of(USAGES)), _enum(USAGES)]
Reason = Annotated[str, AfterValidator(_one_of(RemovalRequest.Reason.values)), _enum(RemovalRequest.Reason.values)]
Outcome = Annotated[str, AfterValidator(_one_of(statements.OUTCOMES)), _enum(statements.OUTCOMES)]
Claim = Annotated[str, AfterValidator(_one_of(CLAIMS)), _enum(CLAIMS)]
State = Literal["received", "planned", "closed"]

SLUG_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
PUBLIC_ID_PATTERN = r"^[0-9A-HJKMNP-TV-Z]{26}$"
IDEMPOTENCY_KEY_PATTERN = r"^[\x21-\x7e]{1,255}$"
IdempotencyKey = Annotated[
    str, Field(pattern=IDEMPOTENCY_KEY_PATTERN, description="1 to 255 visible ASCII characters.")
]


def _no_repeats(words: list[str]) -> list[str]:
    if len(set(words)) < len(words):
        raise ValueError("Name each one once.")
    return words


Usages = Annotated[list[Usage], Field(min_length=1, max_length=len(USAGES)), AfterValidator(_no_repeats)]


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
    source: Annotated[str, AfterValidator(_one_of(Preference.Source.values)), _enum(Preference.Source.values)]
    valid_from: Time | None = None

    def as_choice(self) -> Choice:
        return Choice(self.subject, self.usage, self.value, self.source, self.valid_from)


class ItemOutcome(Said):
    item: Key
    outcome: Outcome


class Attestation(Said):
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
    items: list[ItemOutcome] = Field([], description="Which item ended how, where that helps.")
    attestations: Annotated[list[Attestation], Field(max_length=100)] = []
    amends: bool = False

    @model_validator(mode="after")
    def _names_one_number(self) -> "AcknowledgementLine":
        if (self.sequence is None) == (self.through is None):
            raise ValueError("Name either a sequence or a through.")
        return self

    def as_statement(self, *, text: str) -> statements.Statement:
        return statements.Statement(
            status=self.status,
            text=text,
            sequence=self.sequence,
            through=self.through,
            reason=self.reason,
            detail=self.detail,
            completed_at=self.completed_at,
            outcomes=dict(self.outcomes),
            attestations=[attestation.model_dump(exclude_none=True) for attestation in self.attestations],
            amends=self.amends,
        )


class Answered(BaseModel):
    """Something that we answer."""

    model_config = ConfigDict(from_attributes=True)


def _public_id(request: RemovalRequest | None) -> str | None:
    return request.public_id if request else None


class InvalidField(Answered):
    field: str
    message: str


class Exclusion(Answered):
    """What was kept out. ``items`` null is the whole subject; ``preference`` and ``request`` say on whose word."""

    subject: str
    items: list[str] | None
    rule: str = Field(description="A preference's source, default, deletion or recall.")
    preference: int | None
    request: str | None


class ProblemDetails(Answered):
    """Every error (RFC 9457). Programs go by ``code``."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[InvalidField] = []
    subjects: int | None = Field(None, description="With opted_out_content: how many must go.")
    content: list[Exclusion] = Field([], description="With opted_out_content: the first hundred of them.")


class RecordedRequest(Answered):
    """The answer to a request and to each repeat of it: its state when it was recorded. ``status_url`` has today's."""

    id: str
    state: Literal["received"] = "received"
    status_url: str


class BulkError(Answered):
    code: str
    message: str
    field: str | None = None


class BulkAnswer(Answered):
    """What became of a line. The last line has ``resume_at_line`` instead if the file could not be taken to its end."""

    line: int
    status: Literal["created", "repeated", "conflict", "invalid"]
    id: str | None = None
    error: BulkError | None = None


class PreferenceAnswer(Answered):
    """What became of a line. A conflict is ``opt_out_stands`` or ``too_late``. The last line as in BulkAnswer."""

    line: int
    status: Literal["created", "unchanged", "conflict", "invalid"]
    error: BulkError | None = None


class PreferenceRow(Answered):
    """What one source said. ``request`` is the opt-out or reinstatement that said it."""

    id: int
    usage: str
    value: str
    source: str
    valid_from: datetime
    valid_to: datetime | None
    request: Annotated[str | None, BeforeValidator(_public_id)]


class PrevailingPreference(Answered):
    """What holds for a usage. ``rule`` is the source that prevails, or ``default`` where nobody said anything."""

    value: str
    rule: str
    preference: int | None


class Preferences(Answered):
    subject: str
    prevails: dict[str, PrevailingPreference] = Field(description="By usage, for content that is public.")
    in_force: list[PreferenceRow]
    history: list[PreferenceRow] = Field(description="What has ended: the newest 1,000.")


class GateAnswer(Answered):
    """A line of the gate's answer that is no candidate: a decision, or the end with its counts of items."""

    decision: Exclusion | None = None
    end: Literal[True] | None = None
    allowed: int | None = None
    excluded: int | None = None
    digest: str | None = Field(None, description="SHA-256 of the lines that may pass, in hexadecimal.")


class RefusedRecallLine(Answered):
    """A line of a recall that was not taken: ``not_in_these_releases``, ``item_not_in_these_releases`` …"""

    line: int
    code: str


class RecalledRequest(Answered):
    """A recall. ``accepted_lines`` are ranges [first, last]; of the refused ones, the first 1,000 are listed."""

    id: str = Field(validation_alias="public_id")
    accepted: int = Field(validation_alias="accepted_count")
    accepted_lines: list[tuple[int, int]] = Field(validation_alias="accepted")
    refused: int = Field(validation_alias="refused_count")
    refused_lines: list[RefusedRecallLine] = Field(validation_alias="refused")


class RequestSummary(Answered):
    """A request. One that repeats an earlier one has that one's state, outcome and partners."""

    id: str
    kind: str
    reason: str
    subject: str | None = Field(description="Null when it is about several.")
    usages: list[str]
    received_at: datetime
    respond_by: datetime
    state: State
    outcome: str | None
    repeats: str | None = Field(description="The id of the earlier request that already says all of this.")
    withdrawn_at: datetime | None
    closed_at: datetime | None


class PartnerStatus(Answered):
    """Where a partner stands with a request. ``handling`` is the partner's own word."""

    partner: str
    sequence: int
    kind: str
    delivery: str
    attempts: int
    delivered_at: datetime | None
    handling: str
    acknowledged_at: datetime | None
    respond_by: datetime
    items_total: int = Field(validation_alias="item_count")


class RequestStatus(RequestSummary):
    partners: list[PartnerStatus]


class RequestList(Answered):
    requests: list[RequestSummary]
    next: str | None = Field(description="Where the rest is.")


class UploadedParts(Answered):
    """What has come of a manifest in parts: the numbers as ranges [first, last]."""

    parts: list[tuple[int, int]]
    subjects: int
    items: int


class ReleaseStatus(Answered):
    """A release. Counts and digest are fixed when it is sealed, and null before."""

    name: str
    dataset: str
    source: str
    usages: list[str]
    state: Annotated[str, _enum(Release.State.values)]
    subjects: int | None
    items: int | None
    digest: str | None = Field(description="SHA-256 of its content, in hexadecimal.")
    sealed_at: datetime | None
    uploaded: UploadedParts | None = Field(None, description="While it is building, and comes in parts.")


class SealedRelease(ReleaseStatus):
    """A sealed release. Of the ``subjects_dropped``, the first hundred are in ``dropped``, with so many items each."""

    subjects_dropped: int
    dropped: list[Exclusion]


class ManifestCounts(Answered):
    subjects: int
    items: int


class ManifestPart(Answered):
    """A part as it stands now. ``changed`` is false when the same bytes had come before."""

    number: int
    digest: Annotated[str, BeforeValidator(bytes.hex)] = Field(description="SHA-256 of its bytes, in hexadecimal.")
    subjects: int
    items: int
    changed: bool


class DisclosureStatus(Answered):
    release: str
    partner: str
    reference: str
    disclosed_at: datetime
    usages: list[str]


class Holder(Answered):
    """What one handover gave a partner of a subject. ``items`` are the first thousand of ``items_total``."""

    partner: str
    release: str
    items_total: int
    items: list[str]
    usages: list[str]
    disclosed_at: datetime
    reference: str
    removed_at: datetime | None = Field(description="When the partner attested that all of it is gone.")


class Holders(Answered):
    subject: str
    as_of: datetime
    holders: list[Holder]


class HeldRelease(Answered):
    release: str
    state: str
    subjects: int
    items: int
    handovers: int
    first_disclosed_at: datetime
    last_disclosed_at: datetime


class OpenNotice(Answered):
    sequence: int
    request: str
    planned_at: datetime
    respond_by: datetime


class Holdings(Answered):
    """What a partner was given in all, and what it still has to answer."""

    partner: str
    items: int = Field(description="The sum over its releases; an item in two of them counts twice.")
    releases: list[HeldRelease]
    open_notices: int
    overdue_notices: int
    oldest: OpenNotice | None = Field(description="The open notice that was, or will be, due first.")


class Handover(Answered):
    release: str
    reference: str
    disclosed_at: datetime
    recorded_at: datetime


class Window(Answered):
    """What a partner was given of a request's content before it was told of it (``told_at`` null: not yet)."""

    partner: str
    told_at: datetime | None
    handovers: list[Handover]


class Windows(Answered):
    partners: list[Window]


class ReleaseWith(Answered):
    """A release with content of a request. How much is null for a request about more than 1,000 subjects."""

    release: str
    state: str
    subjects: int | None
    items: int | None


class ReleasesWith(Answered):
    releases: list[ReleaseWith]


class RefusedLine(Answered):
    """Why a line changed nothing. ``sequence`` is null where it could not be read."""

    sequence: int | None
    code: str
    message: str


class AcknowledgementAnswer(Answered):
    """Each line is counted in one of the three, a ``through`` by the numbers it covers."""

    accepted: int
    unchanged: int
    refused: list[RefusedLine]


class PublishedKey(Answered):
    id: str
    algorithm: Literal["ed25519"] = "ed25519"
    public_key: str = Field(description="whpk_ and 32 bytes in base64.")
    active_from: datetime
    retire_at: datetime | None


class PublishedKeys(Answered):
    keys: list[PublishedKey]
    versions: list[str] = ["1"]
    documentation: str


# What ninja does not see in the views: lines of streams, errors, and the messages that we send.


class ManifestLine(Said):
    """A subject, and which of its items. The manifests that come in are read by removal.manifests, a line at a time."""

    subject: Key
    items: Annotated[list[Key], Field(min_length=1)]


class CandidateLine(Said):
    """A subject, which of its items may go into a release, and the state its container is in."""

    subject: Key
    items: Annotated[list[Key], Field(min_length=1)]
    container_state: Annotated[str, _enum(CONTAINER_STATES)]


class WebhookData(TypedDict):
    partner: str
    epoch: int
    first: int
    last: int
    head: int
    notices: list[payload.Notice]
    acknowledge_url: str


class WebhookMessage(TypedDict):
    """Numbers ``first`` to ``last`` of the partner's stream, of ``head`` that it has now."""

    type: Literal["removal.notices"]
    version: Literal["1"]
    timestamp: str
    data: WebhookData


UNSEEN = (
    BulkRequest,
    BulkAnswer,
    RecallLine,
    PreferenceLine,
    PreferenceAnswer,
    CandidateLine,
    GateAnswer,
    ManifestLine,
    AcknowledgementLine,
    ProblemDetails,
)
