"""The plainest valid rows, made through the same step functions as everyone's."""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from django.utils import timezone

from partners.models import Endpoint, Partner
from removal import intake, ledger, uploads
from removal.models import Disclosure, Release, RemovalRequest
from removal.partnerships import NewPartner, add_partner

_numbers = count(1)


def make_partner(slug: str = "", *, url: str = "https://partner.example/removal", **options: Any) -> NewPartner:
    """Make a partner that is live, as if it had passed the checks."""
    slug = slug or f"partner-{next(_numbers)}"
    made = add_partner(actor="test", slug=slug, name="", url="https://partner.example/", now=timezone.now(), **options)
    # Tests listen on loopback, which add_partner refuses unless the settings allow it.
    Endpoint.objects.filter(partner=made.partner).update(url=url)
    made.partner.state = Partner.State.LIVE
    made.partner.save(update_fields=["state"])
    return made


def make_release(name: str = "", *, contents: Mapping[str, Sequence[str]], sealed: bool = True) -> Release:
    name = name or f"release-{next(_numbers)}"
    ledger.create_release(actor="test", name=name, dataset="posts", source="")
    uploads.replace_manifest(
        actor="test",
        name=name,
        entries=(
            ledger.Entry(line, subject, list(items)) for line, (subject, items) in enumerate(contents.items(), start=1)
        ),
    )
    return ledger.seal_release(actor="test", name=name).release if sealed else Release.objects.get(name=name)


def disclose(release: Release, partner: Partner, *, usages: tuple[str, ...] = ("all",)) -> Disclosure:
    disclosure, _ = ledger.record_disclosure(
        actor="test",
        release=release.name,
        partner=partner.slug,
        reference=f"shipment-{next(_numbers)}",
        disclosed_at=timezone.now(),  # a fact: recorded whatever stands in it
        usages=usages,
        now=timezone.now(),
    )
    return disclosure


def make_wish(subject: str = "site:1", *, kind: str = "opt_out", **said: object) -> intake.Wish:
    key = said.pop("key", None) or f"key-{next(_numbers)}"
    return intake.Wish(idempotency_key=str(key), kind=kind, subject=subject, **said)  # type: ignore[arg-type]


def record(wish: intake.Wish, *, source: str = "blogs") -> RemovalRequest:
    recorded = intake.record_request(source=source, actor="test", wish=wish, now=timezone.now())
    return RemovalRequest.objects.get(public_id=recorded.public_id)
