"""Accounts of staff. Changes to them are in our own log, too; an account is switched off and never deleted."""

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group, User
from django.http import HttpRequest
from django.shortcuts import redirect
from django_otp.plugins.otp_static import admin as _static_devices  # noqa: F401  # they register themselves, once
from django_otp.plugins.otp_static.models import StaticDevice
from django_otp.plugins.otp_totp import admin as _totp_devices  # noqa: F401
from django_otp.plugins.otp_totp.models import TOTPDevice

from removal.admin.actions import ask_proof
from removal.models import LogEntry

# Roles are made by migrations, so that everybody's "operator" may do the same; second factors are everybody's own.
for _model in (User, Group, TOTPDevice, StaticDevice):
    admin.site.unregister(_model)


@admin.register(User)
class AccountAdmin(UserAdmin):  # type: ignore[type-arg]  # generic only in the stubs
    list_display = ("username", "is_active", "is_superuser", "roles", "last_login")
    list_filter = ("is_active", "is_superuser", "groups")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("groups")

    @admin.display
    def roles(self, user: User) -> str:
        return ", ".join(sorted(group.name for group in user.groups.all())) or "-"

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return self._first_proof(request) or super().changeform_view(request, *args, **kwargs)

    def user_change_password(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return self._first_proof(request) or super().user_change_password(request, *args, **kwargs)

    def _first_proof(self, request: HttpRequest) -> Any:
        """Ask whoever may touch accounts who they are: a new one could be the second person for a waiver."""
        if not self.has_view_or_change_permission(request):
            return None
        asked = ask_proof(request, title="Accounts: first your password")
        is_answer = "proof-password" in request.POST
        return asked or (redirect(request.get_full_path()) if is_answer else None)

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        _log(request, "staff_added", obj)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        _log(request, "staff_changed", obj)
        return super().log_change(request, obj, message)


def _log(request: HttpRequest, action: str, user: User) -> None:
    about = {
        "user": user.pk,
        "roles": sorted(user.groups.values_list("name", flat=True)),
        "is_active": user.is_active,
        "is_superuser": user.is_superuser,
    }
    LogEntry.objects.create(actor=f"staff:{request.user.pk}", action=action, about=about)
