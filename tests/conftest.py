"""Shared fixtures: a real database, and partners that listen on real sockets."""

import ipaddress
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from django.db import connection, transaction
from django.test import TransactionTestCase
from pytest_django import Settings

ROOT = Path(__file__).resolve().parent.parent
APART = (ROOT / "tests" / "browser", ROOT / "tests" / "fuzz")
# Only what a test filled is emptied: to truncate all tables takes ten times as long. The owner must switch off the
# guards that refuse exactly this; foreign keys are not looked at, since nothing stays that could refer to anything.
EMPTY = """
set local session_replication_role = replica;
do $do$
declare
    filled regclass;
    guard name;
    counter regclass;
begin
    for filled in
        select oid from pg_class
         where relkind = 'r' and relnamespace = 'public'::regnamespace and pg_relation_size(oid) > 0
           and relname ~ '<TABLES>'
    loop
        execute format('alter table %s disable trigger user', filled);
        execute format('delete from %s', filled);
        -- as it was before anything was in it, or the next test's statements are planned for what is gone
        update pg_class set relpages = 0, reltuples = -1 where oid = filled;
        for guard in select tgname from pg_trigger where tgrelid = filled and not tgisinternal loop
            execute format('alter table %s enable always trigger %I', filled, guard);
        end loop;
    end loop;
    for counter in
        select s.seqrelid
          from pg_sequence s
          join pg_depend d on d.objid = s.seqrelid and d.deptype in ('a', 'i')
          join pg_class c on c.oid = d.refobjid and c.relname ~ '<TABLES>'
         where pg_sequence_last_value(s.seqrelid) is not null
    loop
        perform setval(counter, 1, false);
    end loop;
end $do$
""".replace("<TABLES>", "^(removal_|partners_|auth_user|django_session|django_admin_log|axes_)")
# What was emptied and is still long would be read by every test that follows.
LONG = """
select string_agg(oid::regclass::text, ', ') from pg_class
 where relkind = 'r' and relnamespace = 'public'::regnamespace and pg_relation_size(oid) > 1 << 20
"""


def _empty_tables(self: TransactionTestCase) -> None:
    """Empty the tables after a test that commits."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(EMPTY)
        # What a migration puts into tables is there in every test. Read here: whoever wants ROOT alone may come before
        # Django is set up, as the fuzzer and the benchmarks do.
        shipped = import_module("removal.migrations.0010_deadlines")
        for statement in (shipped.POLICIES, shipped.HOLIDAYS):
            cursor.execute(statement)
    with connection.cursor() as cursor:
        cursor.execute(LONG)
        (long,) = cursor.fetchone()
        if long:
            cursor.execute(f"vacuum {long}")


@pytest.fixture(scope="session", autouse=True)
def _tables_are_emptied() -> Iterator[None]:
    """Let tests that commit for real end with empty tables, although history refuses to be deleted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", _empty_tables)
        yield


@pytest.fixture(autouse=True)
def _at_rest() -> None:
    """Let no test find this process at work on the hints of the one before."""
    sending = import_module("removal.sending")  # this file is imported before there are settings, too
    sending._hinted.clear()
    sending._ended.clear()


@pytest.fixture
def loopback_partners(settings: Settings) -> None:
    """Let messages go to receivers on this machine."""
    settings.PARTNER_ALLOW_HTTP = True
    settings.PARTNER_ALLOWED_NETWORKS = (ipaddress.ip_network("127.0.0.0/8"),)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the browser's and the fuzzer's tests to those who name them (README.md, Test it)."""
    named = [Path(argument.partition("::")[0]).absolute() for argument in config.args]
    return (
        True if collection_path in APART and not any(path.is_relative_to(collection_path) for path in named) else None
    )
