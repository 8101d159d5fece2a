"""Who is calling: ``Authorization: Bearer rk_…``."""

from typing import ClassVar, cast

from django.http import HttpRequest
from ninja.errors import AuthenticationError
from ninja.security import HttpBearer

from partners.models import ApiKey
from removal.api.problems import Problem


class KeyRequest(HttpRequest):
    """A request whose key was found good. For the type checker only: Django makes the object."""

    auth: ApiKey

    def __init__(self) -> None:
        raise NotImplementedError


def actor(request: KeyRequest) -> str:
    """Name the caller as the log does: by the key's prefix."""
    return f"api:{request.auth.prefix}"


def partner_id(request: KeyRequest) -> int:
    """Say whose key it is; the database lets no partner's key be without one."""
    return cast(int, request.auth.partner_id)


def check_still_good(request: KeyRequest) -> None:
    """Look at the key again, after a wait: one that was revoked meanwhile reads nothing. Raises AuthenticationError."""
    if not ApiKey.objects.filter(pk=request.auth.pk, revoked_at=None).exists():
        raise AuthenticationError


class _Key(HttpBearer):
    scope: ClassVar[ApiKey.Scope]

    def authenticate(self, request: HttpRequest, token: str) -> ApiKey | None:
        # Found by its digest, so no comparison's time tells how much of a key was right.
        key = ApiKey.objects.filter(digest=ApiKey.digest_of(token), revoked_at=None).first()
        if key and key.scope != self.scope:
            raise Problem(403, "wrong_scope", f"This is a {key.scope} key. Use a {self.scope} key here.")
        return key


class PlatformKey(_Key):
    scope = ApiKey.Scope.PLATFORM
    openapi_description = "A platform's key: records requests, fills the ledger."


class PartnerKey(_Key):
    scope = ApiKey.Scope.PARTNER
    openapi_description = "A partner's key: reads its own stream, acknowledges."
