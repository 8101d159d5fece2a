"""Everybody's own second factor: an authenticator app, and recovery codes."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import segno
from django.contrib import admin
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django_otp import login as show_device

from removal import staff
from removal.admin.actions import ask_proof
from removal.config.site import is_unproven, prove

TITLE = "Your second factor"


@never_cache
@csrf_protect
def second_factor(request: HttpRequest) -> HttpResponse:
    """Set up an app, confirm its first code, and give recovery codes: for staff, before anything else if they must.

    Whoever has a second factor already must be in with it to change it, and must have shown it lately.
    """
    user: Any = request.user
    if not (user.is_active and user.is_staff) or is_unproven(request):
        return redirect_to_login(request.get_full_path(), reverse("admin:login"))
    if asked := ask_proof(request, title=TITLE):
        return asked
    context: dict[str, Any] = {"has_one": staff.has_second_factor(user)}
    wanted = request.POST.get("do", "")
    if wanted == "begin":
        context |= _offer(staff.begin_enrolment(user=user))
    elif wanted == "confirm":
        try:
            device, context["codes"] = staff.confirm_enrolment(user=user, code=request.POST.get("code", ""))
        except staff.WrongCode as error:
            begun = staff.begun_enrolment(user=user)
            context |= {"error": str(error), **(_offer(begun) if begun else {})}
        else:
            request.session.cycle_key()
            show_device(request, device)
            prove(request)
    elif wanted == "renew" and context["has_one"]:
        context["codes"] = staff.renew_recovery_codes(user=user)
    page = {**admin.site.each_context(request), "title": TITLE, **context}
    return TemplateResponse(request, "admin/removal/second_factor.html", page)


def _offer(device: Any) -> dict[str, Any]:
    """Show a new key as a picture to scan, and in letters to type."""
    return {"qr": _picture(device.config_url), "key": parse_qs(urlsplit(device.config_url).query)["secret"][0]}


def _picture(text: str) -> SafeString:
    """Draw a QR code as a path in the page: it needs neither a style nor a script nor a file."""
    dots = segno.make(text, error="m").matrix
    path = " ".join(f"M{x} {y}h1v1h-1z" for y, row in enumerate(dots) for x, dot in enumerate(row) if dot)
    box = f"-4 -4 {len(dots) + 8} {len(dots) + 8}"
    return format_html(
        '<svg class="qr" viewBox="{}" width="240" height="240" role="img" aria-label="QR code">'
        '<rect x="-4" y="-4" width="100%" height="100%" class="qr-light"></rect><path d="{}"></path></svg>',
        box,
        path,
    )
