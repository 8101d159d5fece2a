"""How a partner's messages name things, and the keys to compute the same."""

from django.http import HttpResponse
from ninja import Router

from removal import identifiers
from removal.api import answers
from removal.api.auth import KeyRequest, PartnerKey, partner_id

router = Router(auth=PartnerKey(), tags=["partners"])


@router.get("/partner/identifiers", response=answers.Identifiers)
def show_identifiers(request: KeyRequest, response: HttpResponse) -> identifiers.Choice:
    """Show how your messages name subjects, items and requests, and the keys that their hashed names are made with.

    Readable at any time, unlike what signs: without the key you could not tell what an open notice is about.
    """
    response["Cache-Control"] = "no-store"
    return identifiers.choice_of(partner_id(request))
