"""Who works at the desk: accounts, their roles, and their second factor. Each change leaves a log entry."""

import re
import secrets
from collections.abc import Sequence
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, Group, User
from django.contrib.auth.validators import UnicodeUsernameValidator
from django.contrib.sessions.models import Session
from django.core.exceptions import ValidationError
from django.db import transaction
from django_otp.models import Device
from django_otp.plugins.otp_static.models import StaticDevice, StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice

from removal.models import LogEntry
from removal.roles import ROLES
from removal.transactions import whole_step

RECOVERY_CODES = 10


class UnknownStaff(Exception):
    """No account has this name."""


class UnknownRole(Exception):
    """There is no such role. The message names those that there are."""


class InvalidAccount(Exception):
    """An account with this name cannot be. The message says why."""


class WrongCode(Exception):
    """The code is missing, or not one that counts now. The message says what to do."""


@whole_step
def add_staff(*, actor: str, name: str, roles: Sequence[str] = ()) -> tuple[User, str]:
    """Make an account with these roles; returns it with its first password, which is not kept.

    Raises InvalidAccount and UnknownRole.
    """
    groups = _groups(roles)
    try:
        UnicodeUsernameValidator()(name)
    except ValidationError as error:
        raise InvalidAccount("; ".join(error.messages)) from error
    if len(name) > 150 or User.objects.filter(username__iexact=name).exists():
        raise InvalidAccount(f"{name} cannot be the name of an account: it is taken, or longer than 150 characters.")
    password = secrets.token_urlsafe(12)
    user = User.objects.create_user(name, password=password, is_staff=True)
    user.groups.set(groups)
    _log(actor, "staff_added", user, roles=sorted(roles))
    return user, password


@whole_step
def set_roles(*, actor: str, name: str, roles: Sequence[str]) -> None:
    """Give an account these roles, and no others. Raises UnknownStaff, UnknownRole."""
    user = _find(name)
    user.groups.set(_groups(roles))
    _log(actor, "staff_roles_set", user, roles=sorted(roles))


@whole_step
def disable_staff(*, actor: str, name: str) -> None:
    """Keep an account from logging in, and end its sessions at once. It is never deleted: the log names its number."""
    user = _find(name)
    User.objects.filter(pk=user.pk).update(is_active=False)
    _end_sessions(user)
    _log(actor, "staff_disabled", user)


@whole_step
def reset_second_factor(*, actor: str, name: str) -> bool:
    """Forget a lost second factor, and end the account's sessions: at its next login it sets up another.

    Returns whether there was one. Raises UnknownStaff.
    """
    user = _find(name)
    deleted = sum(model.objects.filter(user=user).delete()[0] for model in (TOTPDevice, StaticDevice))
    _end_sessions(user)
    _log(actor, "second_factor_reset", user)
    return bool(deleted)


# --- the second factor ---


def has_second_factor(user: AbstractBaseUser | AnonymousUser) -> bool:
    return bool(TOTPDevice.objects.filter(user=user, confirmed=True).exists())


def check_code(*, user: Any, code: str) -> Device | None:
    """Check the code of whoever has a second factor, and use it up; returns the device, or None for those without.

    Six digits are the app's; anything else is a recovery code. After wrong ones, both make whoever tries wait longer
    and longer (RFC 6238 §5.2, NIST SP 800-63B §5.2.2). Raises WrongCode.
    """
    if not has_second_factor(user):
        return None
    code = re.sub(r"[\s-]", "", code)
    if not code:
        raise WrongCode("Write the code that your authenticator app shows, too.")
    model = TOTPDevice if re.fullmatch(r"\d{6}", code) else StaticDevice
    # One at a time, so that a code is used once; a wrong one must stay counted, so this never raises inside.
    with transaction.atomic():
        device = model.objects.select_for_update().filter(user=user, confirmed=True).order_by("pk").first()
        if device is not None:
            is_allowed, _ = device.verify_is_allowed()
            if is_allowed and device.verify_token(code.lower()):
                return device
    raise WrongCode("This code is wrong, used already, or too old. Wait a little, and write the next one.")


@whole_step
def begin_enrolment(*, user: Any) -> TOTPDevice:
    """Make a key for an authenticator app, in place of one that was begun and not confirmed."""
    TOTPDevice.objects.filter(user=user, confirmed=False).delete()
    return TOTPDevice.objects.create(user=user, name="app", confirmed=False)


def begun_enrolment(*, user: Any) -> TOTPDevice | None:
    """Find the app that somebody began to set up, if any."""
    return TOTPDevice.objects.filter(user=user, confirmed=False).order_by("-pk").first()


@whole_step
def confirm_enrolment(*, user: Any, code: str) -> tuple[TOTPDevice, list[str]]:
    """Take the app's first code: from now on it is asked for. Returns recovery codes, to be shown once.

    Replaces an earlier app and earlier recovery codes. Raises WrongCode.
    """
    device = TOTPDevice.objects.select_for_update().filter(user=user, confirmed=False).order_by("-pk").first()
    if device is None or not device.verify_token(re.sub(r"\s", "", code)):
        raise WrongCode("This is not the code that the app shows now. Check that the telephone's clock is right.")
    TOTPDevice.objects.filter(user=user).exclude(pk=device.pk).delete()
    TOTPDevice.objects.filter(pk=device.pk).update(confirmed=True)
    device.refresh_from_db()
    codes = _new_recovery_codes(user)
    _log(f"staff:{user.pk}", "second_factor_set_up", user)
    return device, codes


@whole_step
def renew_recovery_codes(*, user: Any) -> list[str]:
    """Make recovery codes in place of the earlier ones, to be shown once."""
    codes = _new_recovery_codes(user)
    _log(f"staff:{user.pk}", "recovery_codes_renewed", user)
    return codes


def _new_recovery_codes(user: Any) -> list[str]:
    StaticDevice.objects.filter(user=user).delete()
    device = StaticDevice.objects.create(user=user, name="recovery codes", confirmed=True)
    codes = [StaticToken.random_token() + StaticToken.random_token()[:4] for _ in range(RECOVERY_CODES)]
    StaticToken.objects.bulk_create(StaticToken(device=device, token=code) for code in codes)
    return codes


def _groups(roles: Sequence[str]) -> list[Group]:
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise UnknownRole(f"There is no role {', '.join(unknown)}. There are: {', '.join(ROLES)}.")
    return list(Group.objects.filter(name__in=roles))


def _find(name: str) -> User:
    user = User.objects.select_for_update().filter(username=name).first()
    if user is None:
        raise UnknownStaff(name)
    return user


def _end_sessions(user: User) -> None:
    """Delete the sessions of one account. There are as many as people logged in, and each has to be opened to see."""
    for session in Session.objects.iterator():
        if session.get_decoded().get("_auth_user_id") == str(user.pk):
            session.delete()


def _log(actor: str, action: str, user: Any, **about: Any) -> None:
    LogEntry.objects.create(actor=actor, action=action, about={"user": user.pk, **about})
