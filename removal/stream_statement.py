"""What a partner should have, in one signed document: "you should have 1..N", and what became of it (design §2, §10).

Its digest settles whether both sides mean the same: SHA-256 over lines ``sequence request kind``, as DIGEST defines it,
which a partner computes from what it has received.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connection

from partners import signing
from partners.keys import signer_for
from removal.models.identifiers import new_id
from removal.payload import as_time

OPEN_LISTED = 100  # open notices in one statement
BLOCK = 10_000  # lines under one hash; part of the contract

# The hash of the hashes of blocks of 10,000 lines, so that no side needs all lines in memory. Requests are looked up
# one by one ("offset 0"): of all there are, a partner was told of few.
DIGEST = f"""
select encode(sha256(coalesce(string_agg(b.hash, ''::bytea order by b.block), '')), 'hex')
  from (select block, sha256(convert_to(x.lines, 'UTF8')) hash
          from generate_series(0, (s.head - 1) / {BLOCK}) block
         cross join lateral (
              select string_agg(n.sequence || ' ' || r.public_id || ' ' || n.kind || E'\\n', ''
                                order by n.sequence) lines
                from removal_notice n
                cross join lateral (
                    select public_id from removal_removalrequest where id = n.request_id offset 0) r
               where n.stream_id = s.partner_id and n.epoch = s.epoch
                 and n.sequence > block * {BLOCK} and n.sequence <= (block + 1) * {BLOCK} offset 0) x
         where s.head > 0) b
"""

# One statement, so that all of it speaks of the same moment.
STATEMENT = f"""
select p.slug, s.epoch, s.head, s.received_through, ({DIGEST}),
       (select coalesce(json_agg(json_build_array(lower(r), upper(r) - 1) order by r), '[]')
          from unnest(s.pulled) r),
       (select coalesce(json_agg(json_build_array(lower(r), upper(r) - 1) order by r), '[]')
          from (select range_agg(int8range(first_sequence, last_sequence + 1)) sent from removal_delivery
                 where stream_id = s.partner_id and epoch = s.epoch and delivered_by = 'response') d
         cross join unnest(d.sent) r),
       (select coalesce(json_object_agg(word, count), '{{}}')
          from (select case when withdrawn_at is not null then 'withdrawn'
                            when handling = 'none' and sequence <= s.received_through then 'received'
                            else handling end word, count(*) count
                  from removal_notice where stream_id = s.partner_id and epoch = s.epoch group by 1) x),
       (select coalesce(json_agg(json_build_object('sequence', sequence, 'respond_by',
                   to_char(respond_by at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')) order by sequence), '[]')
          from (select sequence, respond_by from removal_notice
                 where stream_id = s.partner_id and epoch = s.epoch and sequence > %(open_after)s
                   and withdrawn_at is null and handling in ('none', 'received', 'in_progress')
                 order by sequence limit {OPEN_LISTED} + 1) x)
  from removal_stream s join partners_partner p on p.id = s.partner_id
 where s.partner_id = %(partner)s
"""

OPEN_WORDS = ("none", "received", "in_progress")
WORDS = (*OPEN_WORDS, "completed", "partially_completed", "rejected", "withdrawn")


@dataclass(frozen=True)
class SignedStatement:
    """The exact bytes, and the headers that sign them."""

    body: bytes
    headers: dict[str, str]


def make_statement(*, partner_id: int, open_after: int, now: datetime) -> SignedStatement:
    """Say what a partner should have, signed like a message (Standard Webhooks 1.0.0).

    Of the notices that are open, it lists the first hundred behind the number ``open_after``.
    """
    with connection.cursor() as cursor:
        cursor.execute(STATEMENT, {"partner": partner_id, "open_after": open_after})
        slug, epoch, head, received_through, digest, pulled, delivered, counted, listed = cursor.fetchone()
    handling = dict.fromkeys(WORDS, 0) | counted
    shown = listed[:OPEN_LISTED]
    data: dict[str, Any] = {
        "partner": slug,
        "epoch": epoch,
        "head": head,
        "digest": digest,
        "delivered": delivered,
        "pulled": pulled,
        "received_through": received_through,
        "acknowledged": handling,
        "open": {
            "count": sum(handling[word] for word in OPEN_WORDS),
            "notices": shown,
            "next": _url(shown[-1]["sequence"]) if len(listed) > OPEN_LISTED else None,
        },
    }
    document = {"type": "removal.statement", "version": "1", "timestamp": as_time(now), "data": data}
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    keys = signer_for(partner_id=partner_id, now=now).keys
    return SignedStatement(
        body, signing.headers(message_id=f"stmt_{new_id().hex}", timestamp=now, body=body, keys=keys)
    )


def _url(open_after: int) -> str:
    return f"{settings.PUBLIC_URL}/v1/stream/statement?open_after={open_after}"
