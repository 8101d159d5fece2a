"""Shared fixtures: a real database, and partners that listen on real sockets."""

import ipaddress
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from django.db import connection
from django.test import TransactionTestCase
from pytest_django import Settings

ROOT = Path(__file__).resolve().parent.parent
APART = (ROOT / "tests" / "browser", ROOT / "tests" / "fuzz")
PARTITIONS = "removal_manifestentry_"


def _empty_every_table(self: TransactionTestCase) -> None:
    """Empty the tables after a test that commits. The owner must switch off the guards that refuse exactly this."""
    with connection.cursor() as cursor:
        tables = [
            table
            for table in connection.introspection.table_names(cursor)
            if table.startswith(("removal_", "partners_", "auth_user", "django_session", "django_admin_log", "axes_"))
            and not table.startswith(PARTITIONS)
        ]
        cursor.execute(
            "select c.relname, t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid"
            " where t.tgname = 'history_is_not_emptied'"
        )
        guards = cursor.fetchall()
        for table, guard in guards:
            cursor.execute(f'alter table "{table}" disable trigger "{guard}"')
        cursor.execute(f"truncate {', '.join(tables)} restart identity cascade")
        for table, guard in guards:
            cursor.execute(f'alter table "{table}" enable always trigger "{guard}"')
        # What a migration puts into tables is there in every test. Read here: whoever wants ROOT alone may come before
        # Django is set up, as the fuzzer and the benchmarks do.
        shipped = import_module("removal.migrations.0010_deadlines")
        for statement in (shipped.POLICIES, shipped.HOLIDAYS):
            cursor.execute(statement)


@pytest.fixture(scope="session", autouse=True)
def _truncation_for_append_only_tables() -> Iterator[None]:
    """Let tests that commit for real end with empty tables, although TRUNCATE is refused on history."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", _empty_every_table)
        yield


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
