"""The compliance desk: it shows everything and edits nothing. What staff do here are calls of step functions.

``removal.config.site`` is the front door, ``actions`` the way of everything that staff do. Targets and manifest entries
have composite keys, which the admin cannot register: the pages of their request and release show them.
"""

from django.contrib import admin

from removal.admin import (
    accounts,
    closings,
    contacts,
    deadlines,
    deliveries,
    evidence,
    exports,
    extensions,
    ledger,
    partners,
    questions,
    requests,
    streams,
)

__all__ = [
    "accounts",
    "closings",
    "contacts",
    "deadlines",
    "deliveries",
    "evidence",
    "exports",
    "extensions",
    "ledger",
    "partners",
    "questions",
    "requests",
    "streams",
]

admin.site.disable_action("delete_selected")  # nowhere: not for accounts either, whose numbers stand in the log
