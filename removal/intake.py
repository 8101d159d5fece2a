"""Record requests: one, or a block of many. Both walk the same few set-based statements.

What got its answer is durable, and the same key never makes a second request (design §9.1).
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from partners.models import Partner
from removal import hints, planning
from removal.crashpoints import crashpoint
from removal.models import LogEntry, RemovalRequest
from removal.models.identifiers import new_ulid
from removal.policies import Asked, request_dates
from removal.transactions import whole_step
from removal.why import UNSAID, Why

Kind = RemovalRequest.Kind


class KeyReused(Exception):
    """The idempotency key came before with another body; the request recorded then stands."""


class InvalidWish(Exception):
    """The wish contradicts itself. ``field`` names where, the message what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class UnknownRequest(Exception):
    """This source has recorded no request with this id."""


class CannotWithdraw(Exception):
    """The request has ended already, or is of a kind that another request ends."""


@dataclass(frozen=True)
class Wish:
    """What is asked, before it is a row. ``items`` None means everything of the subject."""

    idempotency_key: str
    kind: str
    subject: str = ""
    partner: str = ""
    items: tuple[str, ...] | None = None
    reason: str = RemovalRequest.Reason.USER_REQUEST
    usages: tuple[str, ...] = ("all",)
    received_at: datetime | None = None
    jurisdiction: str = ""

    def __post_init__(self) -> None:
        if self.kind == Kind.OFFBOARDING and (self.subject or not self.partner):
            raise InvalidWish("partner", "An offboarding names the partner, and no subject: it is about all it holds.")
        if self.kind != Kind.OFFBOARDING and (self.partner or not self.subject):
            raise InvalidWish("subject", "Name the subject; only an offboarding names a partner instead.")
        if self.kind == Kind.REINSTATEMENT and (self.items is not None or self.usages != ("all",)):
            raise InvalidWish("usages", "A reinstatement ends every opt-out of a subject, for all usages and items.")
        if self.kind == Kind.OPT_OUT and self.items is not None:
            raise InvalidWish("items", "An opt-out is about a whole subject: leave items out, or send a deletion.")
        if self.items is not None and not self.items:
            raise InvalidWish("items", "Name at least one item, or leave items out to mean all of them.")

    @property
    def digest(self) -> bytes:
        """SHA-256 of what is asked: equal for a repeat, whatever the order of its items."""
        said = [
            self.kind,
            self.subject,
            sorted(self.items) if self.items is not None else None,
            self.reason,
            sorted(self.usages),
            self.received_at.isoformat() if self.received_at else None,
            self.jurisdiction,
            self.partner,
        ]
        return hashlib.sha256(json.dumps(said).encode()).digest()


@dataclass(frozen=True)
class Recorded:
    """What became of a wish. ``conflict``: its key came before with another body, and nothing was recorded."""

    public_id: str
    created: bool
    conflict: bool = False


# Subjects that are new get a row; all are locked in order of id, so that two blocks about the same ones take turns.
SUBJECTS = """
insert into removal_subject (key) select distinct unnest(%(keys)s::text[]) order by 1 on conflict do nothing
"""
LOCK_SUBJECTS = "select id, key from removal_subject where key = any(%(keys)s) order by id for no key update"

# Ids follow the order of the wishes, and notices that of the ids: the last wish of a person is the last that is told.
# Without a policy it is one calendar month, and two more if it is extended: 31 January ends on the last of February
# (GDPR Art. 12(3)).
REQUESTS = """
insert into removal_removalrequest (public_id, kind, reason, usages, jurisdiction, received_at, recorded_at, respond_by,
                                    confirm_by, extendable_to, tells_person, deadline_policy,
                                    source, idempotency_key, body_digest, state, outcome, partner_id, target_count)
select w.public_id, w.kind, w.reason, string_to_array(w.usages, ' '), w.jurisdiction, w.received_at, clock_timestamp(),
       coalesce(w.respond_by, ((w.received_at at time zone 'UTC') + interval '1 month') at time zone 'UTC'),
       w.confirm_by, case when w.respond_by is null
                          then ((w.received_at at time zone 'UTC') + interval '3 months') at time zone 'UTC'
                          else w.extendable_to end, w.tells_person, w.policy,
       %(source)s, w.key, w.digest, 'received', '', w.partner_id, case when w.partner_id is null then 1 else 0 end
  from unnest(%(public_ids)s::text[], %(kinds)s::text[], %(reasons)s::text[], %(usages)s::text[],
              %(jurisdictions)s::text[], %(received)s::timestamptz[], %(keys)s::text[], %(digests)s::bytea[],
              %(partners)s::bigint[], %(respond)s::timestamptz[], %(confirm)s::timestamptz[],
              %(extendable)s::timestamptz[], %(tells)s::bool[], %(policies)s::text[]) with ordinality
       w(public_id, kind, reason, usages, jurisdiction, received_at, key, digest, partner_id, respond_by, confirm_by,
         extendable_to, tells_person, policy, place)
 order by w.place
    on conflict (source, idempotency_key) do nothing
returning id, public_id
"""

FOUND = """
select idempotency_key, public_id, body_digest from removal_removalrequest
 where source = %(source)s and idempotency_key = any(%(keys)s)
"""

# What already stands: open refusals that a request set which is told to partners.
STANDING = """
select p.subject_id, p.usage, p.request_id
  from removal_preference p join removal_removalrequest r on r.id = p.request_id
 where p.subject_id = any(%(subjects)s) and p.valid_to is null and p.value = 'disallow' and p.source = 'explicit'
   and r.kind = 'opt_out' and r.ended_at is null and r.withdrawn_at is null
"""

REPEATS = """
update removal_removalrequest r set repeats_id = x.earlier
  from unnest(%(ids)s::bigint[], %(earlier)s::bigint[]) x(id, earlier) where r.id = x.id
"""

# One moment for both, which says that the one took the place of the other: RESTORE looks for it.
CLOSE_PREFERENCES = """
update removal_preference p set valid_to = %(at)s
  from unnest(%(subjects)s::bigint[], %(usages)s::text[]) x(subject_id, usage)
 where p.subject_id = x.subject_id and p.usage = x.usage and p.valid_to is null and p.source = 'explicit'
"""
OPEN_PREFERENCES = """
insert into removal_preference (subject_id, usage, value, source, valid_from, request_id)
select x.subject_id, x.usage, 'disallow', 'explicit', %(at)s, x.request_id
  from unnest(%(subjects)s::bigint[], %(usages)s::text[], %(requests)s::bigint[]) x(subject_id, usage, request_id)
"""

# Every opt-out of the subject before it ends with a reinstatement; disclosures after it are not covered by them. Ids
# say what is before: an opt-out with a higher one may have been quicker to lock the subject, and stands.
END_OPT_OUTS = """
update removal_removalrequest o set ended_at = clock_timestamp(), ended_by_id = %(request)s
  from removal_requesttarget t
 where t.subject_id = %(subject)s and o.id = t.request_id and o.kind = 'opt_out' and o.id < %(request)s
   and o.ended_at is null and o.withdrawn_at is null
"""
END_REFUSALS = """
update removal_preference set valid_to = clock_timestamp()
 where subject_id = %(subject)s and valid_to is null and source = 'explicit'
   and (request_id is null or request_id < %(request)s)
"""
ALLOW = """
insert into removal_preference (subject_id, usage, value, source, valid_from, request_id)
values (%(subject)s, 'all', 'allow', 'explicit', clock_timestamp(), %(request)s) on conflict do nothing
"""

LOG = """
insert into removal_logentry (actor, action, about)
select %(actor)s, 'request_recorded', jsonb_build_object('request', x) from unnest(%(public_ids)s::text[]) x
"""


def check_received_at(wish: Wish, *, now: datetime) -> None:
    """Raise InvalidWish when the wish claims to come from the future."""
    if wish.received_at and wish.received_at > now + settings.CLOCK_SKEW:
        raise InvalidWish("received_at", "It lies in the future; send when the person asked.")


def record_request(*, source: str, actor: str, wish: Wish, now: datetime) -> Recorded:
    """Record one wish. Raises InvalidWish, or KeyReused when its key came before with another body."""
    [recorded] = record_requests(source=source, actor=actor, wishes=[wish], now=now)
    if recorded.conflict:
        raise KeyReused(
            f"The Idempotency-Key was used for request {recorded.public_id} with another body. "
            "Send the same body, or a new key."
        )
    return recorded


@whole_step
def record_requests(*, source: str, actor: str, wishes: Sequence[Wish], now: datetime) -> list[Recorded]:
    """Record a block of wishes in one transaction; answers in their order. A key repeated within it counts once.

    ``now`` stands in for a missing ``received_at``. Raises InvalidWish before anything is written.
    """
    first_of_key: dict[str, Wish] = {}
    for wish in wishes:
        check_received_at(wish, now=now)
        first_of_key.setdefault(wish.idempotency_key, wish)
    new = {new_ulid(): wish for wish in first_of_key.values()}
    keys = list(first_of_key)
    partner_ids = _partner_ids(wishes)
    with connection.cursor() as cursor:
        if any(wish.kind == Kind.REINSTATEMENT for wish in wishes):
            # No planner beside it: a late notice of an ended wish must be followed by its reinstatement.
            planning.wait_for_lock(cursor)
        asked = [Asked(str(wish.kind), wish.jurisdiction, wish.received_at or now) for wish in new.values()]
        dates = request_dates(cursor, asked)
        # Subjects before requests, so that of two wishes about one subject the one with the higher id is the later.
        cursor.execute(LOCK_SUBJECTS, {"keys": [wish.subject for wish in new.values() if wish.subject]})
        cursor.execute(
            REQUESTS,
            {
                "source": source,
                "public_ids": list(new),
                "kinds": [str(wish.kind) for wish in new.values()],
                "reasons": [str(wish.reason) for wish in new.values()],
                "usages": [" ".join(wish.usages) for wish in new.values()],
                "jurisdictions": [wish.jurisdiction for wish in new.values()],
                "received": [wish.received_at or now for wish in new.values()],
                "keys": [wish.idempotency_key for wish in new.values()],
                "digests": [wish.digest for wish in new.values()],
                "partners": [partner_ids.get(wish.partner) for wish in new.values()],
                "respond": [one.respond_by for one in dates],
                "confirm": [one.confirm_by for one in dates],
                "extendable": [one.extendable_to for one in dates],
                "tells": [one.tells_person for one in dates],
                "policies": [one.policy for one in dates],
            },
        )
        created = {public_id: request_id for request_id, public_id in cursor.fetchall()}
        written = [(created[public_id], wish) for public_id, wish in new.items() if public_id in created]
        if written:
            subjects = {"keys": [wish.subject for _, wish in written if wish.subject]}
            cursor.execute(SUBJECTS, subjects)
            cursor.execute(LOCK_SUBJECTS, subjects)
            subject_ids = {key: subject_id for subject_id, key in cursor.fetchall()}
            with cursor.copy("copy removal_requesttarget (request_id, subject_id, items) from stdin") as copy:
                for request_id, wish in written:
                    if wish.subject:
                        items = list(wish.items) if wish.items else None
                        copy.write_row((request_id, subject_ids[wish.subject], items))
            about = [(request_id, subject_ids.get(wish.subject, 0), wish) for request_id, wish in written]
            _settle_preferences(cursor, about)
            cursor.execute(LOG, {"actor": actor, "public_ids": list(created)})
        cursor.execute(FOUND, {"source": source, "keys": keys})
        found = {key: (public_id, bytes(digest)) for key, public_id, digest in cursor.fetchall()}
    crashpoint("before_commit")
    transaction.on_commit(lambda: crashpoint("after_commit"))
    if created:
        # Robust: a broker that is down must not fail the request; the sweep finds the row.
        transaction.on_commit(lambda: hints.hint_planner(), robust=True)
    answers = []
    for wish in wishes:
        public_id, digest = found[wish.idempotency_key]
        is_first = wish is first_of_key[wish.idempotency_key]
        answers.append(Recorded(public_id, created=is_first and public_id in created, conflict=digest != wish.digest))
    return answers


def check_partner(wish: Wish) -> None:
    """Raise InvalidWish when the wish names a partner that there is not."""
    _partner_ids([wish])


def _partner_ids(wishes: Sequence[Wish]) -> dict[str, int]:
    slugs = {wish.partner for wish in wishes if wish.partner}
    found = dict(Partner.objects.filter(slug__in=slugs).values_list("slug", "id"))
    if slugs - found.keys():
        raise InvalidWish("partner", "No partner has this slug.")
    return found


def _settle_preferences(cursor: CursorWrapper, wishes: Sequence[tuple[int, int, Wish]]) -> None:
    """Bring preferences to where the wishes leave them, in the order in which they were asked; subjects are locked.

    ``wishes`` are (request id, subject id, wish).
    """
    opt_outs: list[tuple[int, int, Sequence[str]]] = []
    for request_id, subject_id, wish in wishes:
        if wish.kind == Kind.OPT_OUT:
            opt_outs.append((request_id, subject_id, wish.usages))
        elif wish.kind == Kind.REINSTATEMENT:
            _set_preferences(cursor, opt_outs)
            opt_outs = []
            for statement in (END_OPT_OUTS, END_REFUSALS, ALLOW):
                cursor.execute(statement, {"request": request_id, "subject": subject_id})
    _set_preferences(cursor, opt_outs)


def _set_preferences(
    cursor: CursorWrapper, opt_outs: list[tuple[int, int, Sequence[str]]], *, told: Collection[int] = ()
) -> None:
    """Open a refusal for each usage that none covers yet; an opt-out that opens none only repeats an earlier one.

    ``opt_outs`` are (request id, subject id, usages) in the order in which they were asked; subjects are locked. Those
    in ``told`` have notices of their own, and repeat nothing.
    """
    if not opt_outs:
        return
    cursor.execute(STANDING, {"subjects": [subject_id for _, subject_id, _ in opt_outs]})
    standing: dict[int, dict[str, int]] = {}
    for subject_id, usage, request_id in cursor.fetchall():
        standing.setdefault(subject_id, {})[usage] = request_id
    opened: list[tuple[int, str, int]] = []
    repeats: list[tuple[int, int]] = []
    for request_id, subject_id, asked in opt_outs:
        refused = standing.setdefault(subject_id, {})
        news = [usage for usage in asked if usage not in refused and "all" not in refused]
        if news:
            opened += [(subject_id, usage, request_id) for usage in news]
            refused.update(dict.fromkeys(news, request_id))
        elif request_id not in told:
            covering = max(refused.get(usage, refused.get("all", 0)) for usage in asked)
            repeats.append((request_id, covering))
    if opened:
        subjects, usages, requests = (list(column) for column in zip(*opened, strict=True))
        cursor.execute("select clock_timestamp()")
        (at,) = cursor.fetchone()
        for statement in (CLOSE_PREFERENCES, OPEN_PREFERENCES):
            cursor.execute(statement, {"subjects": subjects, "usages": usages, "requests": requests, "at": at})
    if repeats:
        ids, earlier = (list(column) for column in zip(*repeats, strict=True))
        cursor.execute(REPEATS, {"ids": ids, "earlier": earlier})


WITHDRAW_NOTICES = """
update removal_notice n set withdrawn_at = clock_timestamp()
  from removal_stream s
 where n.request_id = %(request)s and s.partner_id = n.stream_id
   and n.epoch = s.epoch and n.sequence > s.packed_through and not s.served @> n.sequence
   and n.withdrawn_at is null
returning n.stream_id
"""

WITHDRAW_REFUSALS = """
update removal_preference set valid_to = clock_timestamp() where request_id = %(request)s and valid_to is null
returning id
"""
# What a refusal had taken the place of ended at the moment when the refusal began. That is said anew, by whom it was
# said then; nothing newer is in its way, since the refusal stood until now.
RESTORE = """
with before as (
    select distinct on (e.id) p.*
      from removal_preference e
      join removal_preference p on p.subject_id = e.subject_id and p.usage = e.usage and p.source = e.source
       and p.valid_to = e.valid_from and p.id <> e.id
     where e.id = any(%(ended)s)
     order by e.id, p.id desc)
insert into removal_preference as made (subject_id, usage, value, source, valid_from, request_id)
select subject_id, usage, value, source, clock_timestamp(), request_id from before order by id
returning id, (select b.id from before b where b.subject_id = made.subject_id and b.usage = made.usage)
"""

# All opt-outs about the same that still stand: what each of them refuses must stay refused, also where the withdrawn
# one had refused it first. Those that repeated it, alone or together with others, are judged again.
JUDGE_AGAIN = """
with standing as materialized (
    select o.id, t.subject_id, o.usages, o.repeats_id is null is_told
      from removal_requesttarget this
      join removal_requesttarget t on t.subject_id = this.subject_id
      join removal_removalrequest o on o.id = t.request_id
     where this.request_id = %(request)s
       and o.kind = 'opt_out' and o.withdrawn_at is null and o.ended_at is null),
freed as (
    update removal_removalrequest r set repeats_id = null
     where r.id = any(array(select id from standing where not is_told)))
select id, subject_id, usages, is_told from standing order by id
"""


# One that was closed before keeps its outcome and its day: what was done, and reported, is not undone.
WITHDRAW = """
update removal_removalrequest r
   set state = 'closed', withdrawn_at = clock_timestamp(),
       (outcome, closed_at) = (select case when s.state = 'closed' then s.outcome else 'withdrawn' end,
                                      coalesce(s.closed_at, clock_timestamp())
                                 from removal_removalrequest s where s.id = coalesce(r.repeats_id, r.id))
 where id = %(request)s
"""


@whole_step
def withdraw_request(*, source: str, actor: str, public_id: str, why: Why = UNSAID) -> RemovalRequest:
    """Take a request back. Notices not yet sent or pulled are told as withdrawn under their numbers; the others stand.

    What an opt-out took the place of holds again. One that is closed keeps its outcome. Withdrawn again, it stays as it
    is. Raises UnknownRequest, or CannotWithdraw when a reinstatement has ended it.
    """
    with connection.cursor() as cursor:
        # No planner beside it: a late disclosure must not bring a notice of a request that is being withdrawn.
        planning.wait_for_lock(cursor)
        # Streams before requests, as acknowledgements lock them.
        cursor.execute(
            "select from removal_stream where partner_id in (select stream_id from removal_notice n"
            " join removal_removalrequest r on r.id = n.request_id where r.public_id = %s)"
            " order by partner_id for no key update",
            [public_id],
        )
        request = (
            RemovalRequest.objects.select_for_update(no_key=True).filter(source=source, public_id=public_id).first()
        )
        if request is None:
            raise UnknownRequest(public_id)
        if request.withdrawn_at:
            return request
        if request.ended_at:
            raise CannotWithdraw("It was ended by a later request; that one stands.")
        if request.kind == Kind.REINSTATEMENT:
            raise CannotWithdraw("Partners may have been told already. A new opt-out ends what it allowed.")
        cursor.execute(WITHDRAW_NOTICES, {"request": request.pk})
        untold = cursor.rowcount
        cursor.execute("delete from removal_matchedpiece where request_id = %s", [request.pk])
        cursor.execute(WITHDRAW, {"request": request.pk})
        cursor.execute(
            "select from removal_subject where id in (select subject_id from removal_requesttarget"
            " where request_id = %s) order by id for no key update",
            [request.pk],
        )
        restored = _restore_preferences(cursor, request)
        if request.kind == Kind.OPT_OUT:
            cursor.execute(JUDGE_AGAIN, {"request": request.pk})
            standing = cursor.fetchall()
            told = {request_id for request_id, _, _, is_told in standing if is_told}
            _set_preferences(cursor, [opt_out for *opt_out, _ in standing], told=told)
    about: dict[str, object] = {"request": public_id, "notices_not_yet_sent": untold, **why.as_ids()}
    if restored:
        about["restored"] = restored
    LogEntry.objects.create(actor=actor, action="request_withdrawn", about=about)
    request.refresh_from_db()
    transaction.on_commit(lambda: hints.hint_planner(), robust=True)
    return request


def _restore_preferences(cursor: CursorWrapper, request: RemovalRequest) -> list[dict[str, int]]:
    """End what a withdrawn request refused, and say anew what stood before it; subjects are locked.

    Returns the new preferences for the log, each with the earlier one that it says again (``as_in``).
    """
    cursor.execute(WITHDRAW_REFUSALS, {"request": request.pk})
    ended = [preference_id for (preference_id,) in cursor.fetchall()]
    if not ended:
        return []
    cursor.execute(RESTORE, {"ended": ended})
    return [{"preference": made, "as_in": earlier} for made, earlier in cursor.fetchall()]
