"""The broker, the database or a second scheduler misbehaves: what was asked is stored once, and told once."""

import ipaddress
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.db import connection
from pytest_django import Settings

from removal import invariants
from removal.models import Delivery, LogEntry, RemovalRequest, Stream
from removal.sweep import Sweeper
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.faults import servers
from tests.faults.harness import PATIENCE_SECONDS, database_url, installation
from tests.faults.proxy import Mode, Proxy, Upstream
from tests.receivers import listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.faults]


def database_address() -> Upstream:
    host, port = connection.settings_dict["HOST"], connection.settings_dict["PORT"] or "5432"
    return Path(host) / f".s.PGSQL.{port}" if host.startswith("/") else (host or "127.0.0.1", int(port))


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[servers.Redis]:
    if not servers.Redis.is_installed():
        pytest.skip("redis-server is not installed: this needs a broker that it may flood")
    redis = servers.Redis(tmp_path)
    yield redis
    redis.kill()


def run_to_its_end(sweeper: Sweeper) -> None:
    try:
        sweeper.run()
    finally:
        sweeper.pool.shutdown()
        connection.close()


def test_a_connection_cut_after_its_commit_makes_one_request(tmp_path: Path) -> None:
    with Proxy(database_address()) as proxy:
        through_proxy = database_url(host="127.0.0.1", port=str(proxy.port), sslmode="disable", gssencmode="disable")
        with installation(tmp_path, DATABASE_URL=through_proxy) as platform:
            platform.start_web()
            said = {"json": {"kind": "opt_out", "subject": "site:1"}, "headers": {"Idempotency-Key": "once"}}
            proxy.cut_after_commits()
            unknown = platform.ask("POST", "/v1/requests", **said)
            assert (unknown.status_code, proxy.commits_cut) == (503, 1)
            stored = RemovalRequest.objects.get()
            again = platform.ask("POST", "/v1/requests", **said)
            assert (again.status_code, again.json()["id"]) == (200, stored.public_id)
        assert RemovalRequest.objects.count() == 1


@pytest.mark.long
def test_a_broker_that_never_answers_holds_up_nothing(tmp_path: Path) -> None:
    with Proxy(("127.0.0.1", 1)) as proxy:
        proxy.switch(Mode.SILENT)
        with installation(tmp_path, BROKER_URL=f"redis://127.0.0.1:{proxy.port}/0") as platform:
            platform.start_web()
            partner = platform.add_partner("acme").partner
            disclose(make_release(contents={f"site:{n}": ["post:1"] for n in range(5)}), partner)
            # It hears of no hint, ever: what it does, its processes find by themselves.
            platform.processes.start_worker()
            seconds = []
            for n in range(5):
                started_at = time.monotonic()
                platform.opt_out(f"site:{n}")
                seconds.append(time.monotonic() - started_at)
            assert max(seconds) < 2  # hints leave on a thread of their own
            platform.wait_until(lambda: proxy.connections >= 1, "a hint to the broker")
            platform.wait_until_all_answered(notices=5)
            platform.assert_promises_hold()


def test_ten_thousand_copies_of_a_hint_send_one_message(tmp_path: Path, own_redis: servers.Redis) -> None:
    queue = django_settings.CELERY_TASK_DEFAULT_QUEUE
    with installation(tmp_path, BROKER_URL=f"redis://127.0.0.1:{own_redis.port}/0", LOG_LEVEL="WARNING") as platform:
        made = platform.add_partner("acme")
        disclose(make_release(contents={"site:1": ["post:1"], "site:2": ["post:1"]}), made.partner)
        record(make_wish("site:1"))
        own_redis.flood(queue=queue, partner_id=made.partner.pk, count=10_000)
        platform.processes.start_worker()
        platform.wait_until(lambda: Delivery.objects.filter(state="delivered").count() == 1, "the notice delivered")
        # What comes in behind thousands of hints does not wait for them to be worked off: the sweep looks at the table.
        record(make_wish("site:2"))
        platform.wait_until(lambda: Delivery.objects.filter(state="delivered").count() == 2, "the other one delivered")
        assert own_redis.length(queue) > 0
        assert list(Delivery.objects.values_list("attempts", flat=True)) == [1, 1]
        platform.assert_promises_hold()


def test_three_schedulers_at_once_plan_and_send_everything_once(settings: Settings) -> None:
    settings.PARTNER_ALLOW_HTTP = True
    settings.PARTNER_ALLOWED_NETWORKS = (ipaddress.ip_network("127.0.0.0/8"),)
    with listening() as receiver:
        partner = make_partner(url=receiver.url, max_notices=2).partner
        disclose(make_release(contents={f"site:{n}": ["post:1"] for n in range(30)}), partner)
        sweepers = [
            Sweeper(interval=timedelta(milliseconds=20), reconcile_interval=timedelta(milliseconds=50))
            for _ in range(3)
        ]
        threads = [threading.Thread(target=run_to_its_end, args=(sweeper,)) for sweeper in sweepers]
        for thread in threads:
            thread.start()
        for n in range(30):
            record(make_wish(f"site:{n}"))
        end = time.monotonic() + PATIENCE_SECONDS
        # What is planned is in no message yet.
        while not Stream.objects.filter(packed_through=30).exists() or Delivery.objects.exclude(state="delivered"):
            assert time.monotonic() < end
            time.sleep(0.05)
        for sweeper in sweepers:
            sweeper.stop()
        for thread in threads:
            thread.join()
    assert sorted(receiver.sequences) == list(range(1, 31))
    # The reconciler, which ran all the while, has found nothing that the planners missed.
    assert not LogEntry.objects.filter(action="reconciled").exists()
    assert {name: count for name, count in invariants.check().items() if count} == {}
