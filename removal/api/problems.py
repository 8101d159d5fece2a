"""Errors in one shape: RFC 9457 problem+json with a stable ``code``, the field, and what to do about it.

Nothing of what was sent is repeated, here or in the log, but names of fields.
"""

import json
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

import pydantic
import structlog
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, UnreadablePostError
from django.views import defaults
from ninja.errors import AuthenticationError, HttpError, ValidationError

from partners import keyring, keys
from removal import (
    acknowledgement,
    compression,
    formats,
    gate,
    holdings,
    intake,
    ledger,
    partnerships,
    preferences,
    prolonging,
    pulling,
    reports,
    uploads,
    verification,
)
from removal.api.streams import BodyCutOff, LengthNeeded, has_untold_length
from removal.manifests import Unreadable

log = structlog.get_logger()

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2
MAX_ERRORS = 20  # of one answer: a list of 100,000 wrong items needs no more to be understood

# Clearer words than pydantic's, where they are met most or speak of Python.
MESSAGES = {
    "model_type": "It must be a JSON object.",
    "string_unicode": "It must not hold half of a surrogate pair.",
    "missing": "This field is required.",
    "extra_forbidden": "There is no such field. Check its spelling, or leave it out.",
}


@dataclass(frozen=True)
class FieldError:
    """Where it is wrong, and what to do."""

    field: str
    message: str


class Problem(Exception):
    """What went wrong, for the caller. ``code`` is part of the contract, the words are not."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = headers
        self.more = more or {}

    def as_response(self) -> HttpResponse:
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            **self.more,
        }
        if self.errors:
            body["errors"] = [asdict(error) for error in self.errors]
        return HttpResponse(json.dumps(body), status=self.status, content_type=CONTENT_TYPE, headers=self.headers)


def invalid_fields(errors: Sequence[FieldError], *, status: int = 422) -> Problem:
    first = errors[0]
    return Problem(status, "invalid_field", f"{first.field}: {first.message}", errors=errors)


def field_errors(error: pydantic.ValidationError) -> list[FieldError]:
    """List what is wrong in a line or a body, without quoting any of it."""
    details = error.errors(include_url=False, include_input=False)
    return [_field_error(detail["loc"], detail) for detail in details[:MAX_ERRORS]]


def _field_error(location: Sequence[int | str], detail: Mapping[str, Any]) -> FieldError:
    message = MESSAGES.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
    return FieldError(".".join(str(part) for part in location) or "body", message)


def answer(request: HttpRequest, error: Any) -> HttpResponse:
    """Turn whatever a view raised into its response. ``error`` is an exception; ninja's own type for it is wider."""
    if isinstance(error, ValidationError):
        return _problem_of_validation(request, error).as_response()
    return problem_of(error).as_response()


def problem_of(error: Exception) -> Problem:
    """Say what an error means to the caller. What nobody foresaw is logged, and is ours."""
    match error:
        case Problem():
            return error
        # who asks
        case AuthenticationError():
            return Problem(
                401,
                "unauthorized",
                "Send 'Authorization: Bearer rk_…'. The key is missing, unknown or revoked.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        # the body
        case RequestDataTooBig():
            return Problem(
                413, "body_too_large", "A JSON body has at most 1 MiB. Send less at once, or NDJSON where it is taken."
            )
        case SuspiciousOperation():  # more parameters than Django reads, and the like
            return Problem(400, "bad_request", "The request cannot be taken. Check its Host header and its form.")
        case LengthNeeded():
            return Problem(411, "length_needed", "Send a Content-Length header with this body.")
        case BodyCutOff() | UnreadablePostError():
            return Problem(400, "body_cut_off", "The body ended early. Send it again.")
        case Unreadable():
            return Problem(400, "unreadable", str(error))
        case HttpError() if isinstance(error.__cause__, Unreadable):  # ninja's own, around our parser's
            return problem_of(error.__cause__)
        case acknowledgement.BrokenOff():
            return _broken_off(error)
        # what the steps say
        case intake.InvalidWish() | ledger.InvalidDisclosure():
            return invalid_fields([FieldError(error.field, str(error))])
        case ledger.InvalidName():
            return invalid_fields([FieldError("name", str(error))])
        case ledger.UnknownPartner():
            return invalid_fields([FieldError("partner", "No partner has this slug.")])
        case intake.KeyReused():
            return Problem(409, "key_reused", str(error))
        case intake.UnknownRequest():
            return Problem(404, "unknown_request", "You have recorded no request with this id.")
        case intake.CannotWithdraw():
            return Problem(409, "cannot_withdraw", str(error))
        case prolonging.CannotExtend():
            return Problem(409, "cannot_extend", str(error))
        case ledger.UnknownRelease():
            return Problem(404, "unknown_release", "No release has this name. POST /v1/releases makes one.")
        case ledger.ReleaseExists():
            return Problem(409, "release_exists", "The name is taken. Choose another.")
        case ledger.ReleaseIsSealed():
            return Problem(409, "release_is_sealed", "A sealed release never changes. Make a new one.")
        case ledger.ReleaseIsNotSealed():
            return Problem(409, "release_is_not_sealed", "Only a sealed release is handed over. Seal it first.")
        case ledger.ContentMustGo():
            return Problem(
                409,
                "opted_out_content",
                f'{error} The first are listed. Take them out, or seal with {{"exclude": true}}; a sealed release '
                "with such content is handed to nobody any more.",
                more={"subjects": error.subjects, "content": [asdict(exclusion) for exclusion in error.first]},
            )
        case ledger.EmptyManifest():
            return Problem(409, "empty_manifest", "The release has no content. PUT its manifest first.")
        case ledger.InvalidManifest():
            return Problem(422, "invalid_manifest", str(error))
        case ledger.PartsDiffer():
            return Problem(409, "parts_differ", str(error))
        case uploads.HasWholeManifest():
            return Problem(409, "has_whole_manifest", "Its manifest came whole. PUT an empty one, then the parts.")
        case uploads.InvalidPart():
            return invalid_fields([FieldError("number", str(error))])
        case formats.UnknownFormat():
            return Problem(415, "unknown_format", str(error))
        case compression.CannotUnpack():
            return Problem(422, "cannot_unpack", f"The body cannot be unpacked. {error}")
        case gate.InvalidCandidate():
            return Problem(422, "invalid_candidate", f"{error} Nothing was released.")
        case preferences.UnknownSubject():
            return Problem(404, "unknown_subject", "Nothing was ever recorded about this subject.")
        case holdings.UnknownPartner():
            return Problem(404, "unknown_partner", "No partner has this slug.")
        case partnerships.InvalidPartner():
            return invalid_fields([FieldError("url", str(error))])
        case verification.Underway():
            wait = {"Retry-After": str(error.wait_seconds)}
            return Problem(409, "verification_underway", str(error), headers=wait)
        case verification.TooSoon():
            return Problem(429, "too_soon", str(error), headers={"Retry-After": str(error.wait_seconds)})
        case keys.TooManySecrets():
            return Problem(409, "too_many_secrets", str(error))
        case keyring.KeyRefused():
            return invalid_fields([FieldError("public_key", str(error))])
        case keyring.UnknownKey():
            return Problem(404, "unknown_key", "You have no such key, or it has ended.")
        case reports.UnknownNotice():
            return Problem(404, "unknown_sequence", "You have been sent no notice with this number.")
        case pulling.WrongEpoch():
            return Problem(409, "wrong_epoch", str(error))
        case pulling.PastHead():
            return Problem(409, "past_head", str(error))
        case pulling.TooScattered():
            return Problem(409, "too_scattered", str(error))
        case Http404():
            return Problem(404, "unknown_path", "There is nothing at this address. /docs lists what there is.")
        # the house
        case OperationalError() | InterfaceError():
            log.warning("database_unavailable", error=type(error).__name__)
            return Problem(
                503,
                "unavailable",
                "The database cannot answer now. Try again; with the same key nothing is recorded twice.",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        case _:
            # Not the message: the database quotes values in its own.
            trace = "".join(traceback.format_tb(error.__traceback__))
            log.error("request_failed", error=type(error).__name__, trace=trace)
            return Problem(500, "internal_error", "This is our fault, and has been logged. Try again later.")


def _broken_off(error: acknowledgement.BrokenOff) -> Problem:
    """Say what broke the lines off, and where to go on."""
    cause = error.__cause__
    problem = problem_of(cause if isinstance(cause, Exception) else RuntimeError())
    problem.more = {
        "accepted": error.answer.accepted,
        "unchanged": error.answer.unchanged,
        "resume_at_line": error.resume_at_line,
    }
    return problem


# A name or a number that cannot be gets the same answer as one that is not.
UNKNOWN = {
    "public_id": intake.UnknownRequest,
    "name": ledger.UnknownRelease,
    "sequence": reports.UnknownNotice,
    "key_id": keyring.UnknownKey,
    "slug": holdings.UnknownPartner,
    "subject": preferences.UnknownSubject,
}


def _problem_of_validation(request: HttpRequest, error: ValidationError) -> Problem:
    found = error.errors[:MAX_ERRORS]
    for place, name, *_ in (detail["loc"] for detail in found):
        if place == "path":
            return problem_of(UNKNOWN[name]())
    places = {detail["loc"][0] for detail in found}
    if "body" in places and not request.body:
        return problem_of(LengthNeeded() if has_untold_length(request) else Unreadable("The body is empty."))
    # A location starts with where it is; for a body, the view's name of it follows.
    errors = [_field_error(detail["loc"][2 if detail["loc"][0] == "body" else 1 :], detail) for detail in found]
    return invalid_fields(errors, status=422 if "body" in places else 400)


def check_parameters(request: HttpRequest, *known: str, repeatable: Collection[str] = ()) -> None:
    """Refuse query parameters that are unknown or stand twice: leaving one out would answer another question."""
    errors = [
        FieldError(name, f"There is no such parameter. Known are: {', '.join(known)}.")
        for name in request.GET
        if name not in known
    ] or [
        FieldError(name, "It stands twice. Keep one.")
        for name, values in request.GET.lists()
        if len(values) > 1 and name not in repeatable
    ]
    if errors:
        raise invalid_fields(errors, status=400)


def refuse_method(response: HttpResponseBase) -> HttpResponseBase:
    """Give the answer to a wrong method the common shape; any other passes as it is."""
    if response.status_code != HTTPStatus.METHOD_NOT_ALLOWED:
        return response
    allowed = response.headers["Allow"]
    detail = f"This address takes {allowed}."
    return Problem(405, "method_not_allowed", detail, headers={"Allow": allowed}).as_response()


# What Django answers before or instead of a view of the API.


def _is_api(request: HttpRequest) -> bool:
    return request.path.startswith(("/v1/", "/.well-known/"))


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _is_api(request):
        return defaults.bad_request(request, exception)
    return problem_of(SuspiciousOperation()).as_response()


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return problem_of(Http404()).as_response() if _is_api(request) else defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    if not _is_api(request):
        return defaults.server_error(request)
    return Problem(500, "internal_error", "This is our fault. Try again later.").as_response()
