"""The desk's front door: who gets in, and how long they count as themselves.

Not in removal/admin: whatever registers a page there needs the site first.
"""

import time
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.forms import AdminAuthenticationForm
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.urls import path

from removal import staff
from removal.config import unsent

# When the person last gave their password, and code if they have one: seconds since 1970, in their session.
PROVEN_AT = "proven_at"


def code_field() -> forms.CharField:
    """Make the field that asks for a code, on the login page and wherever the password is asked again."""
    return forms.CharField(
        label="Code",
        required=False,
        max_length=32,
        help_text="From your authenticator app, or one of your recovery codes. Empty while you have set up none.",
        widget=forms.TextInput(attrs={"autocomplete": "one-time-code"}),
    )


class LoginForm(AdminAuthenticationForm):
    """Name and password, and the code of the second factor once there is one."""

    code = code_field()

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean()
        user: Any = self.get_user()
        if user is not None:
            try:
                # django-otp keeps it in the session at the login that follows.
                user.otp_device = staff.check_code(user=user, code=cleaned.get("code", ""))
            except staff.WrongCode as error:
                raise ValidationError(str(error)) from error
        return cleaned


class Desk(admin.AdminSite):
    """The admin with a second factor, and the same care on every page."""

    site_title = site_header = "Removal"
    index_title = "Compliance desk"
    site_url = None  # there is no site behind the desk
    login_form = LoginForm
    login_template = "admin/desk_login.html"

    def has_permission(self, request: HttpRequest) -> bool:
        """Let staff in who have shown their second factor, if they have one or must."""
        return super().has_permission(request) and not (is_unproven(request) or must_enrol(request))

    def admin_view(self, view: Callable[..., Any], cacheable: bool = False) -> Any:
        """Wrap a page: nobody sees it unlogged, text on it cannot turn it around, and a lost session is said."""
        from partners.admin import name_reordering  # registers its pages with this site

        inner = super().admin_view(view, cacheable)

        def page(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if must_enrol(request) and not is_open_to_everyone(request):
                return redirect("admin:second_factor")
            packed = ""
            if request.method == "POST" and not self.has_permission(request):
                packed = unsent.pack(request)
                kept = " What you wrote will be there." if packed else ""
                text = f"Your session had ended, so nothing was done. Log in, and do it again.{kept}"
                messages.warning(request, text)
            response = name_reordering(inner(request, *args, **kwargs))
            if packed:
                unsent.keep(response, packed)
            return response

        return update_wrapper(page, inner)

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        response: HttpResponse = super().login(request, extra_context)
        if request.method == "POST" and response.status_code == 302:
            prove(request)
        return response

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Answer the desk's questions above the list of lists."""
        from removal.admin import start  # here, since it needs the site to be there

        return super().index(request, {**start.context(request), **(extra_context or {})})

    def get_urls(self) -> list[Any]:
        # Here, since these modules need the site to be there.
        from removal.admin import exports, glossary, second_factor

        pages = [
            path("second-factor/", second_factor.second_factor, name="second_factor"),
            path("glossary/", self.admin_view(glossary.glossary), name="glossary"),
            path("exports/", self.admin_view(exports.exports), name="exports"),
            path("metrics/", self.admin_view(exports.metrics), name="yearly_metrics"),
        ]
        return [*pages, *super().get_urls()]


def is_unproven(request: HttpRequest) -> bool:
    """Say whether somebody has a second factor that this session has not seen."""
    user: Any = request.user
    return bool(user.is_authenticated and not user.is_verified() and staff.has_second_factor(user))


def must_enrol(request: HttpRequest) -> bool:
    """Say whether somebody logged in must first set up a second factor."""
    user: Any = request.user
    is_staff = user.is_authenticated and user.is_active and user.is_staff
    return bool(settings.REQUIRE_TOTP and is_staff and not user.is_verified() and not staff.has_second_factor(user))


def is_open_to_everyone(request: HttpRequest) -> bool:
    return request.resolver_match is not None and request.resolver_match.url_name in {"logout", "jsi18n"}


def prove(request: HttpRequest) -> None:
    """Note that the person just gave their password, and code."""
    request.session[PROVEN_AT] = time.time()


def is_proven(request: HttpRequest) -> bool:
    """Say whether they did so lately enough for what gives away, stops or ends something."""
    given: float = request.session.get(PROVEN_AT, 0)
    return time.time() - given < settings.CONFIRMATION_LASTS.total_seconds()
