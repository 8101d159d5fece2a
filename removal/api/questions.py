"""Questions that the ledger answers: who holds what, and what happened meanwhile."""

from typing import Annotated

from django.utils import timezone
from ninja import Path, Query, Router

from removal import holdings
from removal.api import answers, fields
from removal.api.auth import KeyRequest, PlatformKey
from removal.api.platform import PublicId
from removal.api.problems import check_parameters

router = Router(auth=PlatformKey())

Slug = Annotated[str, Path(pattern=fields.SLUG_PATTERN)]


@router.get("/holders", tags=["ledger"], response=answers.Holders)
def list_holders(
    request: KeyRequest,
    subject: Annotated[fields.Key, Query(description="A parameter, since a path would not bear every key.")],
    as_of: Annotated[fields.Time | None, Query(description="Missing means now.")] = None,
) -> answers.Holders:
    """List who had received what of a subject by a moment, oldest handover first."""
    check_parameters(request, "subject", "as_of")
    moment = as_of or timezone.now()
    found = holdings.holders_of(subject=subject, as_of=moment)
    return answers.Holders.model_validate({"subject": subject, "as_of": moment, "holders": found})


@router.get("/partners/{slug}/holdings", tags=["ledger"], response=answers.Holdings)
def show_holdings(request: KeyRequest, slug: Slug) -> holdings.Holdings:
    """Sum up what a partner was given, and what it still has to answer."""
    return holdings.holdings_of(partner=slug, now=timezone.now())


@router.get("/requests/{public_id}/window", tags=["requests"], response=answers.Windows)
def show_window(request: KeyRequest, public_id: PublicId) -> answers.Windows:
    """Show what partners were given of a request's content after it was received and before they were told of it."""
    found = holdings.window_of(source=request.auth.source, public_id=public_id)
    return answers.Windows.model_validate({"partners": found})


@router.get("/requests/{public_id}/releases", tags=["requests"], response=answers.ReleasesWith)
def list_releases_with(request: KeyRequest, public_id: PublicId) -> answers.ReleasesWith:
    """List every release, handed over or not, that holds content a request is about.

    Of a request about more than 1,000 subjects nothing is counted, and a release that the request does not name is
    found by a sample of 1,000 of them: one that holds only a few of the others may be missing.
    """
    found = holdings.releases_with(source=request.auth.source, public_id=public_id)
    return answers.ReleasesWith.model_validate({"releases": found})
