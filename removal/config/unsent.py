"""What somebody wrote in an action's form and sent after their session had ended: there again once they are back.

It waits in a signed cookie of their own browser, so that strangers cannot fill our database with it.
"""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core import signing
from django.http import HttpRequest, HttpResponseBase

COOKIE = "unsent"
PLACE = "/admin/"
LASTS = timedelta(minutes=15)
MOST_LETTERS = 3800  # browsers drop cookies from 4096
# The page's own fields, and the password and code ("proof-…"), which are never kept.
NOT_WORDS = {"csrfmiddlewaretoken", "token", "effect"}


def pack(request: HttpRequest) -> str:
    """Sign what an action's form was sent with; an empty text for other pages, and where it is too long."""
    match = request.resolver_match
    if match is None or not (match.url_name or "").endswith("_act"):
        return ""
    words = {
        name: value for name, value in request.POST.items() if name not in NOT_WORDS and not name.startswith("proof-")
    }
    packed = signing.dumps({"at": request.get_full_path(), "words": words}, salt=COOKIE, compress=True)
    return packed if words and len(packed) <= MOST_LETTERS else ""


def keep(response: HttpResponseBase, packed: str) -> None:
    response.set_cookie(
        COOKIE, packed, max_age=LASTS, path=PLACE, httponly=True, samesite="Lax", secure=settings.SESSION_COOKIE_SECURE
    )


def take(request: HttpRequest) -> dict[str, Any]:
    """Read what was written at this very address, to begin its form with."""
    try:
        kept = signing.loads(request.COOKIES.get(COOKIE, ""), salt=COOKIE, max_age=LASTS)
    except signing.BadSignature:
        return {}
    return dict(kept["words"]) if kept["at"] == request.get_full_path() else {}


def forget(response: HttpResponseBase) -> None:
    response.delete_cookie(COOKIE, path=PLACE)
