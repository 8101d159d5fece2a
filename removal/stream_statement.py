"""What a partner should have, in one signed document: "you should have 1..N", and what became of it (design §2, §10).

Its digest settles whether both sides mean the same: SHA-256 over lines ``sequence kind items_total``, as STATEMENT
defines it, which a partner computes from what it has received.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connection

from partners import signing
from partners.keys import signer_for
from removal.identifiers import Identifiers
from removal.models.identifiers import new_id
from removal.payload import as_time
from removal.reminders import reminders_for

OPEN_LISTED = 100  # open notices in one statement
BLOCK = 10_000  # lines under one hash; part of the contract

OPEN_WORDS = ("none", "received", "in_progress")
WORDS = (*OPEN_WORDS, "completed", "partially_completed", "rejected", "withdrawn", "closed")

# One statement, so that all of it speaks of the same moment; and one look at each notice. The digest is the hash of the
# hashes of blocks of lines: neither side needs all lines in memory.
STATEMENT = f"""
with
stream as materialized (
    select s.*, p.slug from removal_stream s join partners_partner p on p.id = s.partner_id
     where s.partner_id = %(partner)s),
line as (
    select n.sequence, n.sequence || ' ' || n.kind || ' '
                       || case when n.withdrawn_at is null then n.item_count else 0 end || E'\n' text,
           case when n.withdrawn_at is not null then 'withdrawn'
                when n.closed_at is not null and n.handling in ('none', 'received', 'in_progress') then 'closed'
                when n.handling = 'none' and n.sequence <= s.received_through then 'received'
                else n.handling end word
      from stream s
      join removal_notice n on n.stream_id = s.partner_id and n.epoch = s.epoch),
block as (
    select (sequence - 1) / {BLOCK} number, sha256(convert_to(string_agg(text, '' order by sequence), 'UTF8')) hash,
           {", ".join(f"count(*) filter (where word = '{word}') {word}" for word in WORDS)}
      from line group by 1),
whole as (
    select encode(sha256(coalesce(string_agg(hash, ''::bytea order by number), '')), 'hex') digest,
           json_build_object({", ".join(f"'{word}', coalesce(sum({word}), 0)::bigint" for word in WORDS)}) counted
      from block),
listed as (
    select n.sequence, n.respond_by
      from stream s join removal_notice n on n.stream_id = s.partner_id and n.epoch = s.epoch
     where n.sequence > %(open_after)s and n.withdrawn_at is null and n.closed_at is null
       and n.handling in ('none', 'received', 'in_progress')
     order by n.sequence limit {OPEN_LISTED} + 1),
sent as (
    select range_agg(int8range(d.first_sequence, d.last_sequence + 1)) numbers
      from stream s join removal_delivery d on d.stream_id = s.partner_id and d.epoch = s.epoch
     where d.delivered_by = 'response')
select s.slug, s.epoch, s.head, s.received_through, w.digest, w.counted,
       (select coalesce(json_agg(json_build_array(lower(r), upper(r) - 1) order by r), '[]') from unnest(s.pulled) r),
       (select coalesce(json_agg(json_build_array(lower(r), upper(r) - 1) order by r), '[]')
          from sent cross join unnest(sent.numbers) r),
       (select coalesce(json_agg(json_build_array(
                   sequence, to_char(respond_by at time zone 'UTC', %(time)s))
                   order by sequence), '[]')
          from listed)
  from stream s cross join whole w
"""


@dataclass(frozen=True)
class SignedStatement:
    """The exact bytes, and the headers that sign them."""

    body: bytes
    headers: dict[str, str]


def make_statement(*, partner_id: int, open_after: int, now: datetime) -> SignedStatement:
    """Say what a partner should have, signed like a message (Standard Webhooks 1.0.0).

    Of the notices that are open, it lists the first hundred behind the number ``open_after``.
    """
    identifiers = Identifiers.for_partner(partner_id)
    time = 'YYYY-MM-DD"T"HH24:MI:SS"Z"' if identifiers.is_raw else 'YYYY-MM-DD"T00:00:00Z"'
    with connection.cursor() as cursor:
        cursor.execute(STATEMENT, {"partner": partner_id, "open_after": open_after, "time": time})
        slug, epoch, head, received_through, digest, counted, pulled, delivered, listed = cursor.fetchone()
    shown = listed[:OPEN_LISTED]
    reminder = reminders_for(partner_id=partner_id)
    data: dict[str, Any] = {
        "partner": slug,
        "epoch": epoch,
        "head": head,
        "digest": digest,
        "delivered": delivered,
        "pulled": pulled,
        "received_through": received_through,
        "acknowledged": counted,
        "open": {
            "count": sum(counted[word] for word in OPEN_WORDS),
            "notices": [{"sequence": sequence, "respond_by": respond_by} for sequence, respond_by in shown],
            "next": _url(shown[-1][0]) if len(listed) > OPEN_LISTED else None,
        },
        "reminder": {"due": list(reminder.due), "due_total": reminder.due_total},
    }
    document = {"type": "removal.statement", "version": "1", "timestamp": as_time(identifiers.time(now)), "data": data}
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    keys = signer_for(partner_id=partner_id, now=now).keys
    return SignedStatement(
        body, signing.headers(message_id=f"stmt_{new_id().hex}", timestamp=now, body=body, keys=keys)
    )


def _url(open_after: int) -> str:
    return f"{settings.PUBLIC_URL}/v1/stream/statement?open_after={open_after}"
