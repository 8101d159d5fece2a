"""Each line of `manage.py invariants` is silent over a healthy world, and speaks alone when its promise is broken."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from partners.models import Partner
from removal import delivery, intake, invariants, planning, replay, sending
from removal.acknowledgement import acknowledge
from removal.models import Delivery, Stream
from removal.statements import Statement
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Received, Reply, listening

pytestmark = pytest.mark.usefixtures("loopback_partners")

BUDGET = timedelta(seconds=5)
COVERED_TOGETHER = (("train-ai",), ("search",), ("search", "train-ai"))
ALL_HOLD = {invariant.name: 0 for invariant in invariants.INVARIANTS}


def count_violations() -> dict[str, int]:
    with connection.cursor() as cursor:
        return invariants.count_violations(cursor)


def say(partner: Partner, **said: Any) -> None:
    statement = Statement(text=json.dumps(said), **said)
    assert acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=[statement]).refused == []


def build_world() -> dict[str, int]:
    """Let two partners live through what can happen to a notice; returns the ids that the damage below names.

    acme was sent 1..3 in two messages, one of them twice, and has answered all; 4..6 are not yet sent. globex was sent
    1..3 as a whole and then as halves, and has answered all; 4 is under way, 5..7 are not yet sent.
    """
    refused: set[str] = set()

    def acme_replies(message: Received) -> Reply:
        if 1 in message.sequences and message.webhook_id not in refused:
            refused.add(message.webhook_id)
            return Reply(503)
        return Reply(200, json.dumps({"through": message.sequences[-1], "status": "received"}).encode())

    def globex_replies(message: Received) -> Reply:
        if len(message.sequences) > 2:
            return Reply(422)
        return Reply(503) if 3 in message.sequences else Reply(200)

    with listening(acme_replies) as at_acme, listening(globex_replies) as at_globex:
        acme = make_partner("acme", url=at_acme.url, max_notices=2).partner
        globex = make_partner("globex", url=at_globex.url).partner
        old = make_release("2024-02", contents={f"site:{n}": ["post:1", "post:2"] for n in range(1, 7)})
        new = make_release("2025-01", contents={"site:1": ["post:2", "post:3"], "site:9": ["post:1"]})
        draft = make_release("draft", contents={"site:1": ["post:4"]}, sealed=False)
        disclose(old, acme)
        disclose(old, globex)
        new_to_acme = disclose(new, acme)

        whole = record(make_wish("site:1"))
        partial = record(make_wish("site:2", kind="deletion", items=("post:1",)))
        kept = record(make_wish("site:3"))
        planning.plan(budget=BUDGET)
        sending.drain(partner_id=acme.pk, budget=BUDGET)
        sending.drain(partner_id=globex.pk, budget=BUDGET)
        Delivery.objects.filter(stream=acme.pk, state="waiting").update(due_at=timezone.now())
        sending.drain(partner_id=acme.pk, budget=BUDGET)

    under_way = record(make_wish("site:4"))
    planning.plan(budget=BUDGET)
    delivery.claim(partner_id=globex.pk)

    say(acme, sequence=1, status="completed", outcomes={"removed": 2, "not_found": 1})
    say(acme, sequence=2, status="completed")
    say(acme, sequence=3, status="rejected", reason="legal_obligation")
    say(globex, through=3, status="received")  # ends the message of 3, which waited for another try
    say(globex, sequence=1, status="in_progress")
    say(globex, through=3, status="partially_completed")
    say(globex, sequence=2, status="completed", amends=True, detail="Found the rest.")

    withdrawn = record(make_wish("site:5"))
    last = record(make_wish("site:6"))
    record(make_wish("site:6"))  # only repeats the last one
    unheard = record(make_wish("site:99"))
    planning.plan(budget=BUDGET)
    intake.withdraw_request(source="blogs", actor="test", public_id=withdrawn.public_id)
    late = disclose(new, globex)
    planning.plan(budget=BUDGET)

    rows = {
        "acme": acme, "globex": globex, "new": new, "draft": draft, "new_to_acme": new_to_acme, "late": late,
        "whole": whole, "partial": partial, "kept": kept, "under_way": under_way, "last": last, "unheard": unheard,
    }  # fmt: skip
    return {name: row.pk for name, row in rows.items()}


# What breaks one promise of that world once, and no other.
DAMAGE = [
    (
        "a_key_makes_one_request",
        """update removal_removalrequest
              set idempotency_key = (select idempotency_key from removal_removalrequest where id = %(kept)s)
            where id = %(whole)s""",
    ),
    ("every_request_has_a_target", "delete from removal_requesttarget where request_id = %(unheard)s"),
    (
        "every_holder_has_a_notice",
        """update removal_notice set disclosures = array_remove(disclosures, %(new_to_acme)s)
            where stream_id = %(acme)s and sequence = 1""",
    ),
    (  # a handover that a planner marked, although it was too early to see the request
        "every_holder_has_a_notice",
        """with unseen as (
               insert into removal_disclosure (release_id, partner_id, disclosed_at, usages, reference, recorded_at)
               values (%(new)s, %(acme)s, now(), '{all}', 'unseen', now()) returning id)
           insert into removal_planneddisclosure (disclosure_id, round) select id, 1 from unseen""",
    ),
    (  # a notice is taken back, although its request stands
        "every_holder_has_a_notice",
        "update removal_notice set withdrawn_at = now() where stream_id = %(acme)s and sequence = 4",
    ),
    (  # the request is withdrawn, and the wish that repeats it is not set free
        "every_repeated_wish_is_told",
        """update removal_removalrequest
              set state = 'closed', outcome = 'withdrawn', closed_at = now(), withdrawn_at = now() where id = %(last)s;
           update removal_notice set withdrawn_at = now() where request_id = %(last)s and stream_id = %(acme)s""",
    ),
    (  # the wish was ended by a reinstatement that its holders were never told of
        "every_reinstatement_is_told_last",
        """with back as (
               insert into removal_removalrequest (public_id, kind, reason, usages, jurisdiction, received_at,
                   respond_by, source, idempotency_key, body_digest, state, outcome, closed_at, round)
               values ('back', 'reinstatement', 'user_request', '{all}', '', now(), now(), 'blogs', 'back', '',
                   'closed', 'nothing_disclosed', now(), 1) returning id)
           update removal_removalrequest set ended_at = now(), ended_by_id = back.id from back
            where removal_removalrequest.id = %(under_way)s""",
    ),
    (
        "no_request_waits_unplanned",
        """update removal_removalrequest
              set state = 'received', round = null, outcome = '', closed_at = null,
                  recorded_at = now() - interval '11 minutes'
            where id = %(unheard)s""",
    ),
    (
        "no_disclosure_waits_unplanned",
        """delete from removal_planneddisclosure where disclosure_id = %(late)s;
           update removal_disclosure set recorded_at = now() - interval '11 minutes' where id = %(late)s""",
    ),
    ("streams_have_no_holes", "update removal_stream set head = head + 1 where partner_id = %(acme)s"),
    ("streams_have_no_holes", "delete from removal_notice where stream_id = %(acme)s and sequence = 5"),
    (
        "no_number_is_used_twice",
        """insert into removal_notice select (jsonb_populate_record(n, '{"id": 1000}')).*
             from removal_notice n where stream_id = %(acme)s and sequence = 3""",
    ),
    (
        "no_number_is_outside_its_stream",
        """insert into removal_notice select (jsonb_populate_record(n, '{"id": 1000, "sequence": 7}')).*
             from removal_notice n where stream_id = %(acme)s and sequence = 6""",
    ),
    (
        "every_packed_number_is_in_one_message",
        "update removal_stream set packed_through = packed_through + 1 where partner_id = %(acme)s",
    ),
    (  # 3 lies in another message, too
        "every_packed_number_is_in_one_message",
        """insert into removal_delivery select (jsonb_populate_record(d, '{"id": "00000000000000000000000000000001",
                  "state": "waiting", "attempts": 0, "delivered_by": "", "delivered_at": null}')).*
             from removal_delivery d where stream_id = %(acme)s and first_sequence = 3""",
    ),
    (
        "no_message_reaches_past_what_is_packed",
        """insert into removal_delivery select (jsonb_populate_record(d, '{"id": "00000000000000000000000000000001",
                  "first_sequence": 4, "last_sequence": 4,
                  "state": "waiting", "attempts": 0, "delivered_by": "", "delivered_at": null}')).*
             from removal_delivery d where stream_id = %(acme)s and first_sequence = 3""",
    ),
    ("two_halves_cover_a_split_message", "update removal_delivery set last_sequence = 4 where state = 'split'"),
    (
        "two_halves_cover_a_split_message",
        "update removal_delivery set parent_id = null where parent_id is not null and first_sequence = 3",
    ),
    ("every_opt_out_is_in_force", "update removal_preference set valid_to = now() where request_id = %(whole)s"),
    (
        "no_disclosed_release_was_sealed_with_opted_out_content",
        """update removal_preference set valid_from = now() - interval '1 hour' where request_id = %(under_way)s;
           update removal_release set sealed_at = now() - interval '49 minutes' where name = '2024-02'""",
    ),
    (
        "no_disclosed_release_was_sealed_with_opted_out_content",
        """update removal_removalrequest set recorded_at = now() - interval '1 hour' where id = %(partial)s;
           update removal_release set sealed_at = now() - interval '49 minutes' where name = '2024-02'""",
    ),
    (
        "only_sealed_releases_are_disclosed",
        """insert into removal_disclosure (release_id, partner_id, disclosed_at, usages, reference, recorded_at)
           values (%(draft)s, %(acme)s, now(), '{all}', 'too early', now())""",
    ),
    ("a_sealed_release_counts_what_it_holds", "update removal_release set item_count = 4 where id = %(new)s"),
    (
        "a_sealed_release_has_its_digest",
        "update removal_manifestentry set items = '{post:7}' where release_id = %(new)s and item_count = 1",
    ),
    (
        "every_attempt_is_counted",
        "update removal_delivery set attempts = 2 where stream_id = %(acme)s and first_sequence = 3",
    ),
    (
        "nothing_is_sent_twice_under_one_fence",
        """insert into removal_attempt select (jsonb_populate_record(a, '{"id": 1000}')).*
             from removal_attempt a join removal_delivery d on d.id = a.delivery_id
            where d.stream_id = %(acme)s and d.first_sequence = 3;
           update removal_delivery set attempts = 2 where stream_id = %(acme)s and first_sequence = 3""",
    ),
    (
        "a_message_under_way_has_one_open_attempt",
        "update removal_attempt set finished_at = now(), outcome = 'refused' where finished_at is null",
    ),
    (
        "only_a_message_under_way_has_an_open_attempt",
        """update removal_attempt a set finished_at = null, outcome = '' from removal_delivery d
            where d.id = a.delivery_id and d.stream_id = %(acme)s and a.status = 503""",
    ),
    (
        "a_message_delivered_by_its_response_got_a_2xx",
        """update removal_attempt a set status = 302 from removal_delivery d
            where d.id = a.delivery_id and d.stream_id = %(acme)s and d.first_sequence = 3""",
    ),
    (
        "a_message_ended_by_answers_has_one_for_each_number",
        """update removal_delivery
              set state = 'delivered', lease_until = null, delivered_at = now(), delivered_by = 'acknowledged'
            where state = 'sending';
           update removal_attempt set finished_at = now(), outcome = 'abandoned' where finished_at is null""",
    ),
    (
        "a_message_ended_by_a_pull_was_pulled_or_answered",
        """update removal_delivery
              set state = 'delivered', lease_until = null, delivered_at = now(), delivered_by = 'pulled'
            where state = 'sending';
           update removal_attempt set finished_at = now(), outcome = 'abandoned' where finished_at is null""",
    ),
    (
        "a_message_ended_by_hand_has_nothing_open",
        """update removal_delivery
              set state = 'delivered', lease_until = null, delivered_at = now(), delivered_by = 'closed'
            where state = 'sending';
           update removal_attempt set finished_at = now(), outcome = 'abandoned' where finished_at is null""",
    ),
    (
        "nothing_is_pulled_that_was_not_served",
        "update removal_stream set served = '{[1,3)}', pulled = '{[2,4)}' where partner_id = %(acme)s",
    ),
    (
        "nothing_is_served_beyond_the_head",
        "update removal_stream set served = '{[1,8)}' where partner_id = %(acme)s",
    ),
    (
        "only_told_numbers_are_answered",
        """insert into removal_acknowledgement
           select (jsonb_populate_record(a, '{"id": 1000, "first_sequence": 5, "last_sequence": 5}')).*
             from removal_acknowledgement a where stream_id = %(globex)s and status = 'received';
           update removal_notice set handling = 'received', acknowledged_at = now()
            where stream_id = %(globex)s and sequence = 5""",
    ),
    (
        "every_closed_notice_has_a_persons_reason",
        "update removal_notice set closed_at = now() where stream_id = %(acme)s and sequence = 1",
    ),
    (  # one person alone
        "every_waiver_took_two_people",
        """with person as (
               insert into auth_user (password, is_superuser, username, first_name, last_name, email, is_staff,
                                      is_active, date_joined)
               values ('', false, 'lead', '', '', '', true, true, now()) returning id),
           closed as (
               update removal_notice set closed_at = now() where stream_id = %(acme)s and sequence = 1 returning id),
           waiver as (
               insert into removal_waiver (notice_id, text, asked_by_id, state, decided_by_id, decided_at)
               select closed.id, 'x', person.id, 'approved', person.id, now() from closed, person
               returning id, notice_id, asked_by_id)
           insert into removal_closing (notice_id, reason, text, closed_by_id, waiver_id)
           select notice_id, 'waived', 'x', asked_by_id, id from waiver""",
    ),
    (  # nobody said anything …
        "every_handling_is_the_partners_word",
        """update removal_notice set handling = 'in_progress', acknowledged_at = now()
            where stream_id = %(globex)s and sequence = 4""",
    ),
    (  # … or something else was said
        "every_handling_is_the_partners_word",
        "update removal_notice set handling = 'completed' where stream_id = %(acme)s and sequence = 3",
    ),
    (
        "no_notice_is_behind_what_was_said",
        "update removal_notice set handling = 'received' where stream_id = %(acme)s and sequence = 1",
    ),
    (
        "no_notice_is_behind_what_was_said",
        """insert into removal_acknowledgement
           select (jsonb_populate_record(a, '{"id": 1000, "first_sequence": 4, "last_sequence": 4}')).*
             from removal_acknowledgement a where stream_id = %(globex)s and status = 'received'""",
    ),
    (
        "every_receipt_is_the_partners_word",
        "update removal_stream set received_through = 4 where partner_id = %(globex)s",
    ),
    (  # of 5 the partner said so, of 4 it did not
        "every_receipt_is_the_partners_word",
        """insert into removal_acknowledgement
           select (jsonb_populate_record(a, '{"id": 1000, "first_sequence": 5, "last_sequence": 5}')).*
             from removal_acknowledgement a where stream_id = %(globex)s and status = 'received';
           update removal_stream set received_through = 5 where partner_id = %(globex)s""",
    ),
    (
        "a_closed_request_has_no_open_notice",
        """update removal_removalrequest set state = 'closed', outcome = 'partially_fulfilled', closed_at = now()
            where id = %(under_way)s""",
    ),
    (
        "a_planned_request_has_an_open_notice",
        "update removal_removalrequest set state = 'planned', outcome = '', closed_at = null where id = %(kept)s",
    ),
    (
        "an_outcome_says_what_was_answered",
        "update removal_removalrequest set outcome = 'fulfilled' where id = %(kept)s",
    ),
    (
        "an_outcome_says_what_was_answered",
        "update removal_removalrequest set outcome = 'nothing_disclosed' where id = %(partial)s",
    ),
    (
        "an_outcome_says_what_was_answered",
        "update removal_removalrequest set outcome = 'fulfilled' where id = %(unheard)s",
    ),
    (
        "no_lease_is_long_over",
        "update removal_delivery set lease_until = now() - interval '11 minutes' where state = 'sending'",
    ),
    (
        "no_stream_is_left_standing",
        """update removal_notice set planned_at = now() - interval '11 minutes'
            where stream_id = %(acme)s and sequence = 4""",
    ),
    (
        "every_log_entry_has_its_digest",
        "update removal_logentry set actor = 'nobody' where id = (select min(id) from removal_logentry)",
    ),
    (
        "every_sent_body_has_its_digest",
        """update removal_deliverybody b set body = body || ' '::bytea from removal_delivery d
            where d.id = b.delivery_id and d.stream_id = %(acme)s and d.first_sequence = 3""",
    ),
    (
        "every_answer_has_its_digest",
        """update removal_acknowledgementtext t set text = replace(text, 'obligation', 'claims')
             from removal_acknowledgement a where a.id = t.acknowledgement_id and a.status = 'rejected'""",
    ),
    (
        "no_notice_names_another_partners_handover",
        """update removal_notice set disclosures = disclosures || %(late)s::bigint
            where stream_id = %(acme)s and sequence = 1""",
    ),
    (
        "every_notice_is_about_content_its_partner_holds",
        """update removal_notice set disclosures = disclosures || %(new_to_acme)s::bigint
            where stream_id = %(acme)s and sequence = 2""",
    ),
    (
        "every_notice_is_about_content_its_partner_holds",
        "update removal_notice set disclosures = '{}' where stream_id = %(acme)s and sequence = 5",
    ),
]


def let_the_database_refuse_nothing() -> None:
    """Take away what makes most of this impossible, for as long as the test's transaction lasts."""
    with connection.cursor() as cursor:
        cursor.execute("set constraints all immediate")  # pending checks would forbid ALTER TABLE
        cursor.execute("""
            select format('alter table %I disable trigger user', relname) from pg_class
             where relname ^@ 'removal_' and relkind in ('r', 'p') and not relispartition
             union all
            select format('alter table %I drop constraint %I', relname, conname)
              from pg_constraint c join pg_class t on t.oid = c.conrelid
             where relname ^@ 'removal_' and contype in ('c', 'u') and coninhcount = 0
        """)
        for (statement,) in cursor.fetchall():
            cursor.execute(statement)


@pytest.mark.django_db
@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_a_broken_promise_is_counted_in_its_own_line_alone(name: str, damage: str) -> None:
    world = build_world()
    let_the_database_refuse_nothing()
    with connection.cursor() as cursor:
        cursor.execute(damage, world)
    assert count_violations() == ALL_HOLD | {name: 1}


def test_every_line_is_seen_to_speak() -> None:
    assert {name for name, _ in DAMAGE} == ALL_HOLD.keys()
    assert len(ALL_HOLD) == len(invariants.INVARIANTS)


def test_every_promise_has_its_lines_in_order() -> None:
    promises = [invariant.promise for invariant in invariants.INVARIANTS]
    assert promises == sorted(promises)
    assert set(promises) == set(range(1, 10))


@pytest.mark.django_db
def test_every_line_is_silent_over_a_healthy_world() -> None:
    build_world()
    assert count_violations() == ALL_HOLD


@pytest.mark.django_db
def test_an_epoch_that_is_over_stands_as_it_was() -> None:
    build_world()
    Stream.objects.update(epoch=2, head=0, packed_through=0, received_through=0)
    assert count_violations() == ALL_HOLD


@pytest.mark.django_db
def test_what_was_just_recorded_may_wait_for_the_planner() -> None:
    disclose(make_release(contents={"site:1": ["post:1"]}), make_partner().partner)
    record(make_wish("site:1"))
    assert count_violations() == ALL_HOLD


@pytest.mark.django_db
def test_a_wish_that_two_earlier_ones_cover_together_is_told_by_either() -> None:
    partner = make_partner().partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner, usages=("train-ai",))
    disclose(make_release(contents={"site:1": ["post:2"]}), partner, usages=("search",))
    for usages in COVERED_TOGETHER:
        record(make_wish("site:1", usages=usages))
    planning.plan(budget=BUDGET)
    assert count_violations() == ALL_HOLD


@pytest.mark.django_db
def test_a_wish_that_two_earlier_ones_cover_together_outlives_either() -> None:
    partner = make_partner().partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner, usages=("train-ai",))
    disclose(make_release(contents={"site:1": ["post:2"]}), partner, usages=("search",))
    first, *_ = [record(make_wish("site:1", usages=usages)) for usages in COVERED_TOGETHER]
    planning.plan(budget=BUDGET)
    intake.withdraw_request(source="blogs", actor="test", public_id=first.public_id)
    planning.plan(budget=BUDGET)
    assert count_violations() == ALL_HOLD


# --- check and the command open a transaction of their own, and see what is committed ---


@pytest.mark.django_db(transaction=True)
def test_every_line_speaks_of_the_same_moment() -> None:
    make_partner()

    def break_it() -> None:
        Stream.objects.update(head=1)
        connection.close()

    def beside_the_first_line(execute: Any, sql: str, *rest: Any) -> Any:
        answer = execute(sql, *rest)
        if sql == invariants.INVARIANTS[0].sql:
            with ThreadPoolExecutor() as another_connection:
                another_connection.submit(break_it).result()
        return answer

    with connection.execute_wrapper(beside_the_first_line):
        assert invariants.check() == ALL_HOLD
    assert invariants.check() == ALL_HOLD | {"streams_have_no_holes": 1}


@pytest.mark.django_db(transaction=True)
def test_the_command_prints_every_name_and_succeeds_over_an_empty_database() -> None:
    out = StringIO()
    call_command("invariants", stdout=out)
    assert out.getvalue() == "".join(f"{name}: 0\n" for name in ALL_HOLD)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_exits_with_1_when_a_promise_is_broken(as_json: bool) -> None:
    make_partner()
    Stream.objects.update(head=2)
    counts = ALL_HOLD | {"streams_have_no_holes": 2}
    out = StringIO()
    with pytest.raises(CommandError, match=f"^1 of {len(counts)} do not hold.$") as stopped:
        call_command("invariants", json=as_json, stdout=out)
    assert stopped.value.returncode == 1
    if as_json:
        assert json.loads(out.getvalue()) == counts
    else:
        assert out.getvalue() == "".join(f"{name}: {count}\n" for name, count in counts.items())


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("probe_minutes_ago", "violations"), [(-5, 0), (1, 0), (11, 1)])
def test_a_partner_that_is_down_is_left_standing_only_when_nobody_probes_it(
    probe_minutes_ago: int, violations: int
) -> None:
    with listening(lambda _: Reply(503)) as receiver:
        partner = make_partner("acme", url=receiver.url, max_notices=1).partner
        disclose(make_release(contents={f"site:{n}": ["post:1"] for n in range(3)}), partner)
        for n in range(3):
            record(make_wish(f"site:{n}"))
        planning.plan(budget=BUDGET)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    Delivery.objects.update(due_at=timezone.now() - timedelta(minutes=40))
    Stream.objects.update(probe_at=timezone.now() - timedelta(minutes=probe_minutes_ago))
    assert count_violations()["no_stream_is_left_standing"] == violations


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("lease", "violations"), [(timedelta(seconds=60), 0), (timedelta(milliseconds=1), 1)])
def test_what_is_sent_again_may_wait_while_some_of_it_is_sent(
    lease: timedelta, violations: int, settings: Settings
) -> None:
    with listening() as receiver:
        partner = make_partner("acme", url=receiver.url, max_notices=1).partner
        disclose(make_release(contents={f"site:{n}": ["post:1"] for n in range(2)}), partner)
        for n in range(2):
            record(make_wish(f"site:{n}"))
        planning.plan(budget=BUDGET)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    replay.send_again(actor="test", slug="acme")
    Delivery.objects.update(due_at=timezone.now() - timedelta(minutes=40))
    settings.DELIVERY_LEASE = lease  # "long" is ten of them; the attempts of above are older than ten milliseconds
    assert count_violations()["no_stream_is_left_standing"] == violations
