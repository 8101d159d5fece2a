"""What happened with one request: all of it, in order, a page at a time, and nothing of other requests."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.template.loader import render_to_string
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from partners.models import Partner
from removal import (
    acknowledgement,
    closing,
    delivery,
    escalation,
    extensions,
    intake,
    planning,
    pulling,
    reminders,
    replay,
    timeline,
)
from removal.admin import timelines
from removal.models import Escalation, Extension, LogEntry, Notice, RemovalRequest
from removal.prolonging import extend_request
from removal.statements import Statement
from removal.timeline import timeline_of
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Reply, listening
from tests.removal.admin.story import BUDGET, ask_for_time, first_refuses, owe, say, send

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_partners")]


def happened(request: RemovalRequest) -> list[tuple[str, str]]:
    return [(entry.kind, entry.told.text) for entry in timeline_of(request).entries]


def kinds(request: RemovalRequest) -> list[str]:
    return [kind for kind, _ in happened(request)]


def tell_many(*slugs: str) -> RemovalRequest:
    """Tell partners of one request and of another one in the same message; they answer both."""
    with listening() as receiver:
        partners = [make_partner(slug, url=receiver.url).partner for slug in slugs]
        release = make_release(contents={"site:1": ["post:1", "post:2"], "site:2": ["post:1"]})
        for partner in partners:
            disclose(release, partner)
        request, _ = record(make_wish("site:1")), record(make_wish("site:2"))
        planning.plan(budget=BUDGET)
        for partner in partners:
            send(partner)
            say(partner, 1, "completed", outcomes={"removed": 2})
            say(partner, 2, "rejected", reason="no_match")
    return request


def test_the_whole_way_is_told_in_order_of_time() -> None:
    with listening(first_refuses(b"Who are you?")) as receiver:
        partner = make_partner("acme", url=receiver.url).partner
        request = owe(partner, subject="site:1")
        send(partner)
        send(partner)
    extend_request(actor="staff:7", public_id=request.public_id, reason="Many sites", person_told_at=timezone.now())
    ask_for_time(partner, reason="The index is large.")
    extensions.refuse(extension_id=Extension.objects.get().pk, actor="staff:7", decision="It is small.")
    Escalation.objects.create(request=request, respond_by=request.respond_by, level=50)
    LogEntry.objects.create(actor="staff:7", action="export_printed", about={"request": request.public_id})
    say(partner, 1, "completed", outcomes={"removed": 2}, attestations=[{"claim": "removed_from_corpus"}])
    request.refresh_from_db()

    entries = timeline_of(request).entries
    assert [entry.kind for entry in entries] == [
        "received", "planned", "tried", "tried", "extended", "asked", "decided", "escalated", "staff", "answered",
        "closed",
    ]  # fmt: skip
    by_kind = {entry.kind: entry for entry in entries}
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)
    assert by_kind["received"].told.text == "Received: opt-out, user request, for all."
    assert by_kind["planned"].told.text == "Planned as number 1: it holds 2 items."
    refused, arrived = (entry.told for entry in entries if entry.kind == "tried")
    assert refused.text.startswith("Attempt 1: refused with HTTP 401 after ")
    assert (refused.state, refused.words) == ("refused", "Who are you?")
    assert arrived.text.startswith("Attempt 2: arrived with HTTP 200 after ")
    assert (by_kind["asked"].told.words, by_kind["decided"].told.words) == ("The index is large.", "It is small.")
    assert (by_kind["decided"].told.who, by_kind["extended"].told.who) == ("staff:7", "staff:7")
    assert by_kind["staff"].told.text == "Export printed."
    assert by_kind["answered"].told.text == (
        "Says: completed; 2 removed; attested: removed from corpus; acknowledgement API, not signed."
    )
    assert by_kind["closed"].told.text == "Closed: fulfilled."


def test_other_requests_in_the_same_messages_and_streams_are_not_told() -> None:
    request = tell_many("acme", "bolt")
    answers = [(entry.partner, entry.sequence) for entry in timeline_of(request).entries if entry.kind == "answered"]
    assert answers == [("acme", 1), ("bolt", 1)]
    assert [entry.told.state for entry in timeline_of(request).entries if entry.kind == "answered"] == ["completed"] * 2


def test_an_answer_about_many_numbers_is_told_once() -> None:
    with listening() as receiver:
        partner = make_partner("acme", url=receiver.url).partner
        one, other = owe(partner, subject="site:1"), owe(partner, subject="site:2")
        send(partner)
    later = owe(partner, subject="site:3")
    through = Statement(status="received", text="{}", through=2)
    acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_prefix", statements=[through])
    said = ("answered", "Says: received, of all numbers 1 to 2; acknowledgement API, not signed.")
    assert [happened(request).count(said) for request in (one, other, later)] == [1, 1, 0]


def test_a_message_that_was_split_keeps_its_tries() -> None:
    with listening(lambda _: Reply(413)) as receiver:
        partner = make_partner("acme", url=receiver.url).partner
        one, other = owe(partner, subject="site:1"), owe(partner, subject="site:2")
        send(partner)
        send(partner)
    assert kinds(one)[:2] == kinds(other)[:2] == ["received", "planned"]
    assert (kinds(one).count("tried"), kinds(other).count("tried")) == (3, 3)  # together, then twice alone


def test_pulls_are_told_of_the_numbers_that_they_handed_out() -> None:
    partner = make_partner("acme").partner
    one, other = owe(partner, subject="site:1"), owe(partner, subject="site:2")
    for after in (0, 0, 1):  # the second answer is the first one again
        pulling.pull(partner_id=partner.pk, key_prefix="rk_prefix", after=after, limit=1)
    told = [[entry.told for entry in timeline_of(r).entries if entry.kind == "pulled"] for r in (one, other)]
    assert [[(by.who, by.text) for by in each] for each in told] == [
        [("api:rk_prefix", f"The partner read its stream: numbers {n} to {n}.")] for n in (1, 2)
    ]


def test_what_staff_had_sent_again_is_told() -> None:
    with listening() as receiver:
        partner = make_partner("acme", url=receiver.url, max_notices=1).partner
        one, other = owe(partner, subject="site:1"), owe(partner, subject="site:2")
        send(partner)
        replay.send_again(actor="staff:7", slug="acme", first=2, last=2)
        send(partner)
    assert kinds(one) == ["received", "planned", "tried"]
    assert kinds(other) == ["received", "planned", "tried", "sent again", "tried"]
    [by] = [entry.told for entry in timeline_of(other).entries if entry.kind == "sent again"]
    assert (by.who, by.text) == ("staff:7", "Sent again at a person's wish.")


def test_a_reminder_is_told_of_what_it_names() -> None:
    with listening() as receiver:
        partner = make_partner("acme", url=receiver.url).partner
        answered, owed = owe(partner, subject="site:1"), owe(partner, subject="site:2")
        send(partner)
        say(partner, 1, "completed", outcomes={"removed": 2})
        Notice.objects.update(planned_at=timezone.now() - timedelta(days=40))
        escalation.look()
        assert reminders.remind() == 1
        send(partner)
    assert "reminded" not in kinds(answered)
    assert ("reminded", "A reminder of what is to be answered: delivered.") in happened(owed)


def test_what_a_person_ended_is_told_with_both_people() -> None:
    asker, approver = User.objects.create(username="asker"), User.objects.create(username="approver")
    request = owe(make_partner().partner)
    waiver = closing.ask_waiver(user_id=asker.pk, notice_id=request.notices.get().pk, text="Nobody is there.")
    closing.approve_waiver(user_id=approver.pk, waiver_id=waiver.pk)
    told = {entry.kind: entry.told for entry in timeline_of(request).entries}
    assert (told["waiver asked"].who, told["waiver asked"].words) == (f"staff:{asker.pk}", "Nobody is there.")
    assert (told["waiver decided"].who, told["given up"].who) == (f"staff:{approver.pk}", f"staff:{approver.pk}")


@pytest.mark.parametrize(("actor", "who"), [("staff:7", "staff:7"), ("api:rk_prefix", "blogs")])
def test_a_withdrawal_is_told_once_with_who_did_it(actor: str, who: str) -> None:
    request = owe(make_partner().partner)
    intake.withdraw_request(source="blogs", actor=actor, public_id=request.public_id)
    request.refresh_from_db()
    told = [entry.told for entry in timeline_of(request).entries]
    assert sorted((by.who, by.text) for by in told if "withdrawn" in by.text.lower()) == sorted(
        [(who, "Withdrawn: the wish was taken back."), ("worker", "Closed: withdrawn.")]
    )


def test_a_request_that_was_opened_again_keeps_when_it_was_closed() -> None:
    first, late = make_partner("acme").partner, make_partner("late").partner
    release = make_release(contents={"site:1": ["post:1"]})
    disclose(release, first)
    request, other = record(make_wish("site:1")), record(make_wish("site:2"))
    planning.plan(budget=BUDGET)
    delivery.claim(partner_id=first.pk)
    say(first, 1, "completed")
    closed_at = RemovalRequest.objects.get(pk=request.pk).closed_at
    disclose(release, late)
    planning.plan(budget=BUDGET)
    request.refresh_from_db()
    entries = [entry for entry in timeline_of(request).entries if entry.kind in ("closed before", "reopened")]
    assert [(entry.told.who, entry.told.text) for entry in entries] == [
        ("worker", "Closed: fulfilled."),
        ("planner", "Reopened: a later handover holds its content."),
    ]
    assert [entries[0].at, entries[0].told.state] == [closed_at, "fulfilled"]
    assert kinds(other) == ["received", "closed"]

    delivery.claim(partner_id=late.pk)
    say(late, 1, "rejected", reason="no_match")
    request.refresh_from_db()
    say(late, 1, "completed", amends=True, detail="We found it.")
    request.refresh_from_db()
    closings = [text for _, text in happened(request) if text.startswith(("Closed", "Reopened"))]
    assert closings == [
        "Closed: fulfilled.", "Reopened: a later handover holds its content.", "Closed: partially fulfilled.",
        "Closed: fulfilled.",
    ]  # fmt: skip


def test_the_page_says_how_much_of_it_there_is() -> None:
    request = tell_many("acme")
    for most, words in (
        (500, "5 lines in order of time. What"),
        (1, "1 line in order of time; more came before them. What"),
    ):
        page = timelines.page_of(request)
        whole = timeline_of(request, most=most)
        shown = timelines.Page(page.lines[-len(whole.entries) :], "/earlier/" if whole.earlier else "")
        text = " ".join(render_to_string("admin/removal/happened.html", {"page": shown}).split())
        assert words in text


def test_a_repeat_has_the_notices_of_the_earlier_one() -> None:
    owe(make_partner("acme").partner, subject="site:1")
    assert kinds(record(make_wish("site:1"))) == ["planned", "received"]


def test_pages_go_back_without_holes_or_repeats() -> None:
    request = tell_many("a", "b", "c")
    whole = [(entry.at, entry.kind, entry.partner) for entry in timeline_of(request).entries]
    found: list[tuple[object, str, str]] = []
    page = timeline_of(request, most=3)
    while True:
        found = [(entry.at, entry.kind, entry.partner) for entry in page.entries] + found
        if page.earlier is None:
            break
        page = timeline_of(request, before=page.earlier, most=3)
    assert len(whole) > 6
    assert found == whole


def test_three_partners_cost_as_many_queries_as_one() -> None:
    def price(request: RemovalRequest) -> int:
        with CaptureQueriesContext(connection) as queries:
            timeline_of(request)
        return len(queries)

    one = tell_many("a")
    with listening() as receiver:
        many = [make_partner(slug, url=receiver.url).partner for slug in ("b", "c", "d")]
        three = owe(*many, subject="site:9")
        for partner in many:
            send(partner)
            say(partner, 1, "completed", outcomes={"removed": 2})
    assert price(one) == price(three)


@pytest.fixture
def much() -> RemovalRequest:
    """One request among so many rows that reading them all would show."""
    partner = Partner.objects.get(pk=make_partner("acme").partner.pk)
    request = owe(partner, subject="site:1")
    with connection.cursor() as cursor:
        cursor.execute(
            "insert into removal_logentry (actor, action, about)"
            " select 'worker', 'x', jsonb_build_object('request', n::text) from generate_series(1, 20000) n"
        )
        cursor.execute(
            "insert into removal_logentry (actor, action, about)"
            " select 'api:x', 'pulled', jsonb_build_object('partner', %s, 'epoch', 1, 'first', n * 5, 'last', n * 5)"
            " from generate_series(1, 20000) n",
            [partner.pk],
        )
        cursor.execute(
            "insert into removal_acknowledgement (stream_id, epoch, first_sequence, last_sequence, status, reason,"
            " amends, outcomes, attestations, channel, key_prefix, text_digest)"
            " select %s, 1, n * 10, n * 10 + 9, 'received', '', false, '{}', '[]', 'api', '', ''"
            " from generate_series(1, 20000) n",
            [partner.pk],
        )
        cursor.execute("analyze removal_logentry, removal_acknowledgement")
    return request


def test_no_part_reads_a_whole_table_of_answers_or_of_the_log(much: RemovalRequest) -> None:
    wanted: dict[str, Any] = {"request": much.pk, "told_as": much.pk, "public_id": much.public_id, "most": 500}
    wanted |= {"most_pulled": 1000}
    wanted |= {"at": None, "kind": "", "id": ""}
    with connection.cursor() as cursor:
        cursor.execute(f"explain {timeline.HAPPENED}", wanted)
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert all(name in plan for name in ("logentry_staff_request", "logentry_pulled", "logentry_sent_again"))
    assert "acknowledgement_covers" in plan
    assert "Seq Scan on removal_logentry" not in plan
    assert "Seq Scan on removal_acknowledgement" not in plan


def test_times_are_those_of_the_database(much: RemovalRequest) -> None:
    now = timezone.now()
    assert all(now - timedelta(minutes=5) < entry.at <= now for entry in timeline_of(much).entries)
