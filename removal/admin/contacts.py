"""Whom to write to, or call, at a partner: kept by the partner manager, and deleted when no longer needed."""

from typing import Any

from django.contrib import admin
from django.utils.safestring import SafeString

from partners.admin import link, shorten
from partners.models import Contact
from removal.admin.deadlines import EditableAdmin


@admin.register(Contact)
class ContactAdmin(EditableAdmin):
    is_deletable = True
    explanation = (
        "People at partners, by what they answer for. These are personal data: keep what you need, and delete a person "
        "who has left. The log says that a contact was changed, and nothing of what stood there."
    )
    when_empty = "No contact yet. Add the first one here, or on a partner's page."
    list_display = ("full_name", "partner", "role", "email", "phone")
    list_filter = ("role", "partner")
    list_select_related = ("partner",)
    fields = ("partner", "role", "name", "email", "phone")

    @admin.display(description="name")
    def full_name(self, contact: Contact) -> str:
        return shorten(contact.name)


def contacts_of(partner_id: int) -> list[dict[str, Any]]:
    """List a partner's contacts for its page, by role."""
    found = Contact.objects.filter(partner_id=partner_id).order_by("role", "name", "pk")[:50]
    return [{"name": _name(contact), "row": contact} for contact in found]


def _name(contact: Contact) -> SafeString:
    return link(contact, shorten(contact.name))
