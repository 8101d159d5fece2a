"""The compliance desk: it shows everything and edits nothing. What staff do here are calls of step functions.

Targets and manifest entries have composite keys, which the admin cannot register: the pages of their request and
release show them.
"""

from django.contrib import admin

from removal.admin import deadlines, deliveries, evidence, extensions, ledger, partners, questions, requests, streams

__all__ = [
    "deadlines",
    "deliveries",
    "evidence",
    "extensions",
    "ledger",
    "partners",
    "questions",
    "requests",
    "streams",
]

admin.site.site_title = admin.site.site_header = "Removal"
admin.site.index_title = "Compliance desk"
admin.site.site_url = None  # there is no site behind the desk
admin.site.disable_action("delete_selected")  # nowhere: not for accounts either, whose numbers stand in the log
