"""What platforms call: requests, and the ledger of who received what."""

from typing import Annotated
from urllib.parse import urlencode

from django.conf import settings
from django.http import HttpResponse, StreamingHttpResponse
from django.utils import timezone
from ninja import Header, Query, Router, Status
from ninja import Path as InPath

from removal import intake, ledger, prolonging, reports
from removal.api import answers, bulk, fields, schemas
from removal.api.auth import KeyRequest, PlatformKey, actor
from removal.api.problems import check_parameters
from removal.api.streams import NDJSON, open_body
from removal.models import Release, RequestExtension
from removal.models.ledger import NAME_PATTERN

router = Router(auth=PlatformKey())

PublicId = Annotated[str, InPath(pattern=fields.PUBLIC_ID_PATTERN)]
ReleaseName = Annotated[str, InPath(pattern=NAME_PATTERN)]
IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", pattern=fields.IDEMPOTENCY_KEY_PATTERN)]


@router.post("/requests", tags=["requests"], response=dict.fromkeys((201, 200), answers.RecordedRequest))
def record_request(
    request: KeyRequest, response: HttpResponse, wish: schemas.NewRequest, idempotency_key: IdempotencyKey
) -> Status[answers.RecordedRequest]:
    """Record a person's wish. It is durable when this is answered.

    Send it again with the same key and body until there is an answer: 201 the first time, 200 with the same answer
    after that, 409 if the key came before with another body.
    """
    recorded = intake.record_request(
        source=request.auth.source,
        actor=actor(request),
        wish=wish.as_wish(idempotency_key=idempotency_key),
        now=timezone.now(),
    )
    status_url = f"{settings.PUBLIC_URL}/v1/requests/{recorded.public_id}"
    response["Location"] = status_url
    answer = answers.RecordedRequest(id=recorded.public_id, status_url=status_url)
    return Status(201 if recorded.created else 200, answer)


@router.post("/requests/bulk", tags=["requests"], openapi_extra=bulk.DESCRIPTION)
def record_many_requests(request: KeyRequest) -> StreamingHttpResponse:
    """Record many wishes: NDJSON, each line with its own `idempotency_key`.

    The answer is NDJSON too, a line for each that is not blank, in order. A line that cannot be taken is refused, the
    others stand. Sending the whole file again is safe.

    The answer begins when the whole body was read, and each block of it was committed by then.
    """
    answers = bulk.record_lines(open_body(request), source=request.auth.source, actor=actor(request))
    return StreamingHttpResponse(bulk.after_the_body(answers), content_type=NDJSON)


@router.get("/requests", tags=["requests"], response=answers.RequestList)
def list_requests(
    request: KeyRequest,
    subject: Annotated[fields.Key | None, Query()] = None,
    state: Annotated[fields.State | None, Query()] = None,
    after: Annotated[str | None, Query(pattern=fields.PUBLIC_ID_PATTERN)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> answers.RequestList:
    """List your requests, oldest first."""
    check_parameters(request, "subject", "state", "after", "limit")
    found = reports.request_lines(
        source=request.auth.source, subject=subject, state=state, after=after or "", limit=limit + 1
    )
    page = [answers.RequestSummary.model_validate(line) for line in found[:limit]]
    if len(found) == len(page):
        return answers.RequestList(requests=page, next=None)
    query = {"subject": subject, "state": state, "after": page[-1].id, "limit": limit}
    rest = urlencode({name: value for name, value in query.items() if value is not None})
    return answers.RequestList(requests=page, next=f"{settings.PUBLIC_URL}/v1/requests?{rest}")


@router.get("/requests/{public_id}", tags=["requests"], response=answers.RequestStatus)
def show_request(request: KeyRequest, public_id: PublicId) -> answers.RequestStatus:
    """Show a request, and where each partner that holds the content stands with it."""
    return _status(request, public_id)


@router.post("/requests/{public_id}/withdraw", tags=["requests"], response=answers.RequestStatus)
def withdraw_request(request: KeyRequest, public_id: PublicId) -> answers.RequestStatus:
    """Take a request back. Partners that have not been told yet are not; for the others it stands. Safe to repeat.

    One that is closed keeps its outcome.
    """
    intake.withdraw_request(source=request.auth.source, actor=actor(request), public_id=public_id)
    return _status(request, public_id)


@router.post("/requests/{public_id}/extension", tags=["requests"], response=answers.RequestExtension)
def extend_request(request: KeyRequest, public_id: PublicId, said: schemas.NewExtension) -> RequestExtension:
    """Take more time for a request, once, and only before its first date. Safe to repeat.

    Most policies ask that the person was told within the first term (`person_told_at`). A 409 `cannot_extend` says what
    is in the way.
    """
    return prolonging.extend_request(
        source=request.auth.source,
        actor=actor(request),
        public_id=public_id,
        reason=said.reason,
        person_told_at=said.person_told_at,
    )


def _status(request: KeyRequest, public_id: str) -> answers.RequestStatus:
    line, partners = reports.find_request(source=request.auth.source, public_id=public_id)
    return answers.RequestStatus.model_validate(vars(line) | {"partners": partners})


@router.post("/releases", tags=["ledger"], response={201: answers.ReleaseStatus})
def create_release(request: KeyRequest, release: schemas.NewRelease) -> Status[answers.ReleaseStatus]:
    """Start a version of a dataset, and the dataset if it is new."""
    made = ledger.create_release(
        actor=actor(request),
        name=release.name,
        dataset=release.dataset,
        source=release.source,
        usages=release.usages,
    )
    return Status(201, _describe(made))


@router.get("/releases/{name}", tags=["ledger"], response=answers.ReleaseStatus)
def show_release(request: KeyRequest, name: ReleaseName) -> answers.ReleaseStatus:
    """Show a release: its state and, once it is sealed, its counts and digest; before, what has come in parts."""
    release, uploaded = reports.release_progress(name=name)
    return _describe(release, uploaded)


@router.post("/releases/{name}/seal", tags=["ledger"], response=answers.SealedRelease)
def seal_release(
    request: KeyRequest, name: ReleaseName, sealing: schemas.Sealing | None = None
) -> answers.SealedRelease:
    """Fix a release for ever. Only then can it be handed over.

    It is first checked against all that was said until now. What must not be in it is a 409 `opted_out_content`, or is
    dropped with `{"exclude": true}` and listed in the answer. A manifest that came in parts is sealed with
    `{"parts": n}`; a 409 `parts_differ` names what is missing.
    """
    said = sealing or schemas.Sealing()
    done = ledger.seal_release(actor=actor(request), name=name, exclude=said.exclude, parts=said.parts)
    dropped = {"subjects_dropped": done.dropped.subjects, "dropped": done.dropped.first}
    return answers.SealedRelease.model_validate(vars(_describe(done.release)) | dropped)


def _describe(release: Release, uploaded: reports.UploadedParts | None = None) -> answers.ReleaseStatus:
    return answers.ReleaseStatus(
        name=release.name,
        dataset=release.dataset.name,
        source=release.source,
        usages=release.usages,
        state=release.state,
        subjects=release.subject_count,
        items=release.item_count,
        digest=bytes(release.digest).hex() if release.digest else None,
        sealed_at=release.sealed_at,
        uploaded=answers.UploadedParts.model_validate(uploaded) if uploaded else None,
    )


@router.post(
    "/releases/{name}/disclosures",
    tags=["ledger"],
    response=dict.fromkeys((201, 200), answers.DisclosureStatus),
)
def record_disclosure(
    request: KeyRequest, name: ReleaseName, handover: schemas.NewDisclosure
) -> Status[answers.DisclosureStatus]:
    """Record that a partner receives a release. 201 the first time, 200 for each repeat of the same handover.

    Without `disclosed_at` it is about to be handed over: ask before you send anything. A 409 `opted_out_content` lists
    what must not leave. With `disclosed_at` it has happened, and is recorded whatever stands in it; partners are told.
    A repeat is not checked again: 200 says that it was recorded before, and partners are told of who opted out since.
    """
    disclosure, is_new = ledger.record_disclosure(
        actor=actor(request),
        release=name,
        partner=handover.partner,
        reference=handover.reference,
        disclosed_at=handover.disclosed_at,
        usages=handover.usages,
        now=timezone.now(),
    )
    answer = answers.DisclosureStatus(
        release=name,
        partner=handover.partner,
        reference=disclosure.reference,
        disclosed_at=disclosure.disclosed_at,
        usages=disclosure.usages,
    )
    return Status(201 if is_new else 200, answer)
