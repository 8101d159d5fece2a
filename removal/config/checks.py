"""What `check --deploy` refuses beside Django's own list."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as CheckWarning


@register(Tags.security, deploy=True)
def check_partner_network(**_: Any) -> list[CheckMessage]:
    """Refuse the two development settings that let messages leave unencrypted or reach our own network."""
    found: list[CheckMessage] = []
    if settings.PARTNER_ALLOW_HTTP:
        found.append(
            Error("PARTNER_ALLOW_HTTP is on: notices would travel unencrypted.", hint="Unset it.", id="removal.E001")
        )
    if settings.PARTNER_ALLOWED_NETWORKS:
        found.append(
            Error(
                "PARTNER_ALLOWED_NETWORKS is set: a partner could point us at our own network.",
                hint="Unset it.",
                id="removal.E002",
            )
        )
    if settings.CRASH_AT:
        found.append(Error("CRASH_AT is set: processes would kill themselves.", hint="Unset it.", id="removal.E003"))
    return found


@register(Tags.security, deploy=True)
def check_staff_login(**_: Any) -> list[CheckMessage]:
    """Warn where a password alone opens the desk."""
    if settings.REQUIRE_TOTP:
        return []
    return [
        CheckWarning("REQUIRE_TOTP is off: a password alone opens the desk.", hint="Set it to 1.", id="removal.W001")
    ]
