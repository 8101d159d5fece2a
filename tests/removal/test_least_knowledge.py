"""Promise 9: whatever is disclosed to whom, and whatever is asked, a partner is told only of what it received."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count

import pytest
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partners.models import Partner
from removal import intake, ledger, payload, planning, recall, reports, uploads
from removal.identifiers import Identifiers
from removal.models import ManifestEntry, Notice, Release, RemovalRequest, Stream
from tests.factories import disclose, make_partner, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)

SUBJECTS, ITEMS = range(3), range(3)
_worlds = count(1)
_releases = count(1)

Contents = dict[str, list[str]]


@dataclass
class World:
    """Two partners and what they were given, under names that no other example of the test has."""

    partners: list[Partner]
    number: int = field(default_factory=lambda: next(_worlds))
    given: dict[int, dict[str, Contents]] = field(default_factory=dict)  # by partner and release: what it held
    releases: list[Release] = field(default_factory=list)

    def subject(self, n: int) -> str:
        return f"site:{self.number}-{n}"

    def contents(self, drawn: dict[int, set[int]]) -> Contents:
        return {self.subject(s): [f"post:{self.number}-{i}" for i in sorted(items)] for s, items in drawn.items()}


def make_release(world: World, uploaded: dict[int, set[int]], kept: dict[int, set[int]]) -> None:
    """Upload a manifest, put another in its place, and seal what of it may be in a release."""
    name = f"release-{world.number}-{next(_releases)}"
    ledger.create_release(actor="test", name=name, dataset="posts", source="")
    for drawn in (uploaded, kept):
        lines = enumerate(world.contents(drawn).items(), start=1)
        entries = [ledger.Entry(line, subject, items) for line, (subject, items) in lines]
        uploads.replace_manifest(actor="test", name=name, entries=entries)
    try:
        world.releases.append(ledger.seal_release(actor="test", name=name, exclude=True).release)
    except ledger.EmptyManifest:
        return  # all of it had opted out: there is nothing to hand over


def hand_over(world: World, partner: int, release: int) -> None:
    if not world.releases:
        return
    chosen = world.releases[release % len(world.releases)]
    holder = world.partners[partner]
    disclose(chosen, holder)
    entries = ManifestEntry.objects.filter(release=chosen).select_related("subject")
    world.given.setdefault(holder.pk, {})[chosen.name] = {entry.subject.key: entry.items for entry in entries}


def ask(world: World, kind: str, subject: int, items: set[int]) -> None:
    if kind == "recall":
        call_back(world, {subject, *items})
        return
    some = tuple(f"post:{world.number}-{i}" for i in sorted(items)) or None
    record(make_wish(world.subject(subject), kind=kind, **({"items": some} if kind == "deletion" else {})))


def call_back(world: World, subjects: set[int]) -> None:
    if not world.releases:
        return
    with suppress(intake.InvalidWish):  # nothing of it is in these releases
        recall.record_recall(
            source="blogs",
            actor="test",
            recall=recall.Recall(
                idempotency_key=f"recall-{world.number}-{RemovalRequest.objects.count()}",
                releases=tuple(release.name for release in world.releases[:2]),
            ),
            lines=[recall.Line(n, world.subject(n), None) for n in sorted(subjects)],
            now=timezone.now(),
        )


def withdraw(world: World, nth: int) -> None:
    requests = RemovalRequest.objects.filter(targets__subject__key__contains=f"site:{world.number}-", kind="deletion")
    chosen = requests.order_by("id").distinct()[nth : nth + 1]
    for request in chosen:
        intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)


drawn_contents = st.dictionaries(st.sampled_from(SUBJECTS), st.sets(st.sampled_from(ITEMS), min_size=1), min_size=1)
steps = st.one_of(
    st.builds(lambda a, b: lambda w: make_release(w, a, b), drawn_contents, drawn_contents),
    st.builds(lambda p, r: lambda w: hand_over(w, p, r), st.integers(0, 1), st.integers(0, 3)),
    st.builds(
        lambda k, s, i: lambda w: ask(w, k, s, i),
        st.sampled_from(["opt_out", "deletion", "recall", "reinstatement"]),
        st.sampled_from(SUBJECTS),
        st.sets(st.sampled_from(ITEMS)),
    ),
    st.builds(lambda n: lambda w: withdraw(w, n), st.integers(0, 2)),
    st.just(lambda _: planning.plan(budget=timedelta(seconds=30))),
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    identifiers=st.sampled_from(Partner.Identifiers.values),
    first=drawn_contents,
    story=st.lists(steps, min_size=3, max_size=12),
)
def test_a_notice_names_only_what_this_partner_received(
    identifiers: str, first: dict[int, set[int]], story: list[Callable[[World], object]]
) -> None:
    world = World([make_partner(identifiers=identifiers).partner for _ in range(2)])
    make_release(world, first, first)
    hand_over(world, 0, 0)
    for step in story:
        step(world)
    planning.plan(budget=timedelta(seconds=30))
    for partner in world.partners:
        check(partner, world.given.get(partner.pk, {}))


def check(partner: Partner, given_to_it: dict[str, Contents]) -> None:
    """Compare everything that the partner is told with what it was given, in its own names for it."""
    names = Identifiers.for_partner(partner.pk)
    received = {
        release: {names.subject(subject): set(names.items(subject, items)) for subject, items in contents.items()}
        for release, contents in given_to_it.items()
    }
    of_all: dict[str, set[str]] = {}
    for contents in received.values():
        for subject, held in contents.items():
            of_all.setdefault(subject, set()).update(held)
    head = Stream.objects.get(partner=partner).head
    Stream.objects.filter(partner=partner).update(packed_through=head)
    for notice in payload.read_notices(stream_id=partner.pk, epoch=1, first=1, last=head):
        for part in notice.get("held", []):
            assert set(part["items"]) <= received[part["release"]][notice["subject"]]
            assert part["items_total"] == len(part["items"]) > 0
        if "subject" in notice:
            assert notice["subject"] in of_all
        assert set(notice.get("releases", ())) <= received.keys()
        page = reports.notice_items(
            partner_id=partner.pk, epoch=1, sequence=notice["sequence"], after=0, limit=100
        ).entries
        for subject, items in page:
            assert set(items) <= of_all[subject]
        if "subjects_total" in notice:
            assert notice["subjects_total"] == len(page)
        if page and notice["kind"] != "reinstatement":
            assert notice["items_total"] == sum(len(items) for _, items in page)
    if not received:
        assert not Notice.objects.filter(stream=partner.pk).exists()
