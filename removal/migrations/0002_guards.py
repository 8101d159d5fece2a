"""What the database refuses by itself, whoever asks: changed history, steps backwards, unsealed handovers.

The triggers are ENABLE ALWAYS, so that ``session_replication_role = replica`` does not switch them off.
"""

from django.db import migrations

APPEND_ONLY = ("removal_logentry", "removal_disclosure", "removal_acknowledgement")
NEVER_DELETED = ("removal_attempt", "removal_delivery", "removal_notice", "removal_removalrequest", "removal_stream")

FUNCTIONS = """
create sequence removal_planner_round;

create function removal_refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% is history: % is refused', tg_table_name, tg_op using errcode = 'restrict_violation';
end $$;

create function removal_seal_log_entry() returns trigger language plpgsql as $$
begin
    new.at = clock_timestamp();
    new.digest = removal_log_digest(new.at, new.actor, new.action, new.about);
    return new;
end $$;

-- What a log entry's digest is computed over; 31 is ASCII's unit separator.
create function removal_log_digest(at timestamptz, actor text, action text, about jsonb) returns bytea
language sql stable as $$
    select sha256(convert_to(
        concat_ws(chr(31), to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), actor, action, about::text),
        'UTF8'))
$$;

create function removal_guard_attempt() returns trigger language plpgsql as $$
begin
    if (new.delivery_id, new.number, new.url, new.key_ids, new.started_at)
        is distinct from (old.delivery_id, old.number, old.url, old.key_ids, old.started_at)
    then raise exception 'an attempt says for ever what was tried' using errcode = 'restrict_violation';
    end if;
    if old.finished_at is not null
        and (old.late_outcome <> '' or (new.finished_at, new.outcome, new.status, new.reason, new.response_excerpt)
            is distinct from (old.finished_at, old.outcome, old.status, old.reason, old.response_excerpt))
    then raise exception 'an attempt is closed once' using errcode = 'restrict_violation';
    end if;
    return new;
end $$;

create function removal_guard_delivery() returns trigger language plpgsql as $$
begin
    if (new.id, new.stream_id, new.epoch, new.first_sequence, new.last_sequence, new.parent_id)
        is distinct from (old.id, old.stream_id, old.epoch, old.first_sequence, old.last_sequence, old.parent_id)
        or old.body_digest is not null and new.body_digest is distinct from old.body_digest
    then raise exception 'a message keeps its range and its bytes' using errcode = 'restrict_violation';
    end if;
    if new.fence < old.fence or new.attempts < old.attempts
    then raise exception 'a fence only grows' using errcode = 'restrict_violation';
    end if;
    if new.state <> old.state and not (old.state || ' ' || new.state) in (
        'waiting sending', 'waiting delivered',
        'sending waiting', 'sending delivered', 'sending split', 'sending quarantined',
        'quarantined waiting', 'quarantined delivered', 'delivered waiting')
    then raise exception 'a delivery does not go from % to %', old.state, new.state using errcode = 'restrict_violation';
    end if;
    return new;
end $$;

-- none < received < in_progress < the three ends; one end may be amended into another.
create function removal_handling_rank(handling text) returns int language sql immutable as $$
    select case handling when 'none' then 0 when 'received' then 1 when 'in_progress' then 2 else 3 end
$$;

create function removal_guard_notice() returns trigger language plpgsql as $$
begin
    if (new.stream_id, new.epoch, new.sequence, new.request_id, new.kind, new.disclosures, new.item_count, new.round)
        is distinct from
        (old.stream_id, old.epoch, old.sequence, old.request_id, old.kind, old.disclosures, old.item_count, old.round)
    then raise exception 'a notice keeps its number and what it says' using errcode = 'restrict_violation';
    end if;
    if removal_handling_rank(new.handling) < removal_handling_rank(old.handling)
    then raise exception 'handling does not go back from % to %', old.handling, new.handling
        using errcode = 'restrict_violation';
    end if;
    return new;
end $$;

create function removal_guard_stream() returns trigger language plpgsql as $$
begin
    if new.epoch < old.epoch or new.epoch = old.epoch and
        (new.head < old.head or new.packed_through < old.packed_through or new.received_through < old.received_through)
    then raise exception 'a stream only grows' using errcode = 'restrict_violation';
    end if;
    return new;
end $$;

create function removal_guard_request() returns trigger language plpgsql as $$
begin
    raise exception 'a request says for ever what was asked' using errcode = 'restrict_violation';
end $$;

create function removal_guard_disclosure() returns trigger language plpgsql as $$
begin
    -- The lock keeps it from being recalled in the same moment.
    perform from removal_release where id = new.release_id and state = 'sealed' for share;
    if not found then raise exception 'only a sealed release is disclosed' using errcode = 'restrict_violation';
    end if;
    -- The planner numbers notices in this stream: no holder may be without one.
    insert into removal_stream (partner_id, epoch, head, packed_through, received_through)
    values (new.partner_id, 1, 0, 0, 0) on conflict do nothing;
    return new;
end $$;

create function removal_guard_release() returns trigger language plpgsql as $$
begin
    if old.state <> 'building' and (new.name, new.dataset_id, new.sealed_at, new.digest, new.subject_count,
            new.item_count) is distinct from (old.name, old.dataset_id, old.sealed_at, old.digest,
            old.subject_count, old.item_count)
        or not (old.state || ' ' || new.state) in
            ('building building', 'building sealed', 'sealed sealed', 'sealed recalled', 'recalled recalled')
    then raise exception 'a sealed release is immutable' using errcode = 'restrict_violation';
    end if;
    return new;
end $$;

create function removal_guard_manifest() returns trigger language plpgsql as $$
begin
    if exists (select from removal_release where id in (select distinct release_id from changed) and state <> 'building')
    then raise exception 'the manifest of a sealed release is immutable' using errcode = 'restrict_violation';
    end if;
    return null;
end $$;
"""


def trigger(table: str, name: str, when: str, function: str) -> str:
    return (
        f"create trigger {name} {when.format(table=table)} execute function {function}();\n"
        f"alter table {table} enable always trigger {name};\n"
    )


TRIGGERS = "".join(
    [
        *(
            trigger(table, "history_is_not_changed", "before update or delete on {table} for each row", "removal_refuse_change")
            for table in APPEND_ONLY
        ),
        *(
            trigger(table, "history_is_not_deleted", "before delete on {table} for each row", "removal_refuse_change")
            for table in NEVER_DELETED
        ),
        *(
            trigger(table, "history_is_not_emptied", "before truncate on {table}", "removal_refuse_change")
            for table in (*APPEND_ONLY, *NEVER_DELETED, "removal_manifestentry")
        ),
        trigger("removal_logentry", "a_log_entry_is_sealed", "before insert on {table} for each row", "removal_seal_log_entry"),
        trigger("removal_attempt", "an_attempt_is_closed_once", "before update on {table} for each row", "removal_guard_attempt"),
        trigger("removal_delivery", "a_delivery_moves_forward", "before update on {table} for each row", "removal_guard_delivery"),
        trigger("removal_notice", "handling_moves_forward", "before update on {table} for each row", "removal_guard_notice"),
        trigger("removal_stream", "a_stream_only_grows", "before update on {table} for each row", "removal_guard_stream"),
        trigger(
            "removal_removalrequest",
            "a_request_keeps_what_was_asked",
            "before update of public_id, kind, usages, received_at, source, idempotency_key, body_digest, release_ids,"
            " partner_id on {table} for each row",
            "removal_guard_request",
        ),
        trigger(
            "removal_disclosure",
            "only_a_sealed_release_is_disclosed",
            "before insert on {table} for each row",
            "removal_guard_disclosure",
        ),
        trigger("removal_release", "a_sealed_release_is_immutable", "before update on {table} for each row", "removal_guard_release"),
        trigger("removal_manifestentry", "an_entry_is_not_updated", "before update on {table} for each row", "removal_refuse_change"),
        trigger(
            "removal_manifestentry",
            "entries_join_a_building_release",
            "after insert on {table} referencing new table as changed",
            "removal_guard_manifest",
        ),
        trigger(
            "removal_manifestentry",
            "entries_leave_a_building_release",
            "after delete on {table} referencing old table as changed",
            "removal_guard_manifest",
        ),
    ]
)


class Migration(migrations.Migration):
    dependencies = [("removal", "0001_initial")]
    operations = [migrations.RunSQL(FUNCTIONS), migrations.RunSQL(TRIGGERS)]
