"""What stands in every answer's headers, and whose address a request came from."""

import ipaddress
from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

# None of our pages needs any of these.
NOT_ALLOWED = ("camera", "geolocation", "microphone", "payment", "usb", "display-capture", "publickey-credentials-get")
PERMISSIONS_POLICY = ", ".join(f"{feature}=()" for feature in NOT_ALLOWED)


def permissions_policy(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Middleware: keep devices and payment from whatever runs in our pages."""

    def answer(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        response.headers.setdefault("Permissions-Policy", PERMISSIONS_POLICY)
        return response

    return answer


def client_address(request: HttpRequest) -> str:
    """Find the address that a request came from, for the lock-out.

    With ``TRUSTED_PROXIES`` = n it is the n-th from the right in X-Forwarded-For: what the outermost of our own proxies
    wrote. Whatever stands to the left of it was sent by the caller, and is not believed.
    """
    peer = str(request.META.get("REMOTE_ADDR", ""))
    if settings.TRUSTED_PROXIES == 0:
        return peer
    hops = [hop.strip() for hop in request.META.get("HTTP_X_FORWARDED_FOR", "").split(",") if hop.strip()]
    if len(hops) < settings.TRUSTED_PROXIES:
        return peer
    try:
        return str(ipaddress.ip_address(hops[-settings.TRUSTED_PROXIES]))
    except ValueError:
        return peer
