"""What the API gives."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from partners.models import Partner
from removal import payload
from removal.api.fields import State, enum
from removal.models import Release, RemovalRequest


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
    accepted: int | None = Field(None, description="Where acknowledgements broke off: what stands, as in the answer.")
    unchanged: int | None = None
    resume_at_line: int | None = Field(None, description="Where acknowledgements broke off: the line to go on with.")


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
    """What became of a line. The last line is a BodyEnd instead if the file could not be taken to its end."""

    line: int
    status: Literal["created", "repeated", "conflict", "invalid"]
    id: str | None = None
    error: BulkError | None = None


class BodyEnd(Answered):
    """Why the rest of a body was not taken. The answers before it stand; send the rest again from this line on."""

    error: BulkError
    resume_at_line: int


class PreferenceAnswer(Answered):
    """What became of a line. A conflict is ``opt_out_stands`` or ``too_late``. The last line as for BulkAnswer."""

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


class RequestExtension(Answered):
    """More time for a request: the date before, and the one that holds."""

    first_respond_by: datetime
    respond_by: datetime
    reason: str
    person_told_at: datetime | None
    extended_at: datetime


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
    closed_at: datetime | None = Field(
        None, description="When a person ended it by hand; the partner's own word stays what it was."
    )
    closed_reason: str = Field("", description="Why, in a word; empty while nobody did.")


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
    state: Annotated[str, enum(Release.State.values)]
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
    refused: list[RefusedLine] = Field(description="The first 10,000.")
    refused_total: int | None = Field(None, description="Where more were refused than are listed.")


class IdentifierKey(Answered):
    key: str = Field(description="idk_ and 32 bytes in base64.")
    created_at: datetime


class Identifiers(Answered):
    """How your messages name things. Of the ``keys`` the first is in force; older messages may have another."""

    identifiers: Annotated[str, enum(Partner.Identifiers.values)]
    keys: list[IdentifierKey]


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
    schemas: dict[str, str] = Field(description="JSON Schemas of the messages that we send, by name and version.")


class StreamPage(Answered):
    """Numbers ``first`` to ``last`` of your stream, null where nothing follows. ``next`` is where the rest is."""

    partner: str
    epoch: int
    first: int | None
    last: int | None
    head: int
    acknowledge_url: str
    next: str | None
    notices: list[payload.Notice]


class OpenSequence(Answered):
    sequence: int
    respond_by: datetime


class OpenSequences(Answered):
    count: int
    notices: list[OpenSequence] = Field(description="The first hundred behind open_after.")
    next: str | None = Field(description="The statement with those that follow.")


class Reminded(Answered):
    """What a reminder to you would say now: the first of what is due, soonest first, and how many there are in all."""

    due: list[payload.Due]
    due_total: int


class StatementData(Answered):
    """You should have 1 to ``head``. Ranges are [first, last]."""

    partner: str
    epoch: int
    head: int
    digest: str = Field(description="SHA-256 of your notices 1 to head, in hexadecimal; the guide says how it is made.")
    delivered: list[tuple[int, int]] = Field(description="In messages that your endpoint answered with a 2xx.")
    pulled: list[tuple[int, int]] = Field(description="Pulled, and you came back for what follows.")
    received_through: int = Field(description="You said that you received all up to here.")
    acknowledged: dict[str, int] = Field(
        description="How many notices stand at each word; withdrawn and closed ones ask nothing."
    )
    open: OpenSequences
    reminder: Reminded


class StatementDocument(Answered):
    type: Literal["removal.statement"]
    version: Literal["1"]
    timestamp: str
    data: StatementData
