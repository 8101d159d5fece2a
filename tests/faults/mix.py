"""A whole installation on servers of its own, a load, and a fault every second or so: what ``tests.faults`` runs.

The seed decides which faults come in which order, what the clients ask and what the partners answer. Processes still
interleave as they like, so a replay gives the same pressure and not the same instruction.
"""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet

if TYPE_CHECKING:
    from removal.partnerships import NewPartner
    from tests.faults.load import Client
    from tests.faults.servers import Postgres, Redis

ROOT = Path(__file__).resolve().parent.parent.parent
WORKERS = ("first", "second")
WEB_POINTS = {"before_commit", "after_commit"}
LEASE_SECONDS = 4
DEADLINE_SECONDS = 2
DISK_MEGABYTES = 384
# Slug, how it answers, and limits of its endpoint.
PARTNERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("steady", "healthy", {}),
    ("narrow", "healthy", {"window": 2, "max_notices": 3}),
    ("flaky", "flaky", {"max_notices": 10}),
    ("hostile", "hostile", {"window": 3, "max_notices": 8}),
)
HEALTHY = {slug for slug, character, _ in PARTNERS if character == "healthy"}
# Twice what is promised for a recovery (a lease and a sweep, twice), and a busy machine's share.
SETTLE_SECONDS = 120


@dataclass
class Options:
    seed: int
    seconds: float
    fencing: bool = True
    only: Sequence[str] = ()
    keep: bool = False


@dataclass
class Summary:
    seed: int
    seconds: float
    fencing: bool
    faults: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    witnessed: dict[str, int] = field(default_factory=dict)
    late_results: int = 0
    settled_seconds: float | None = None
    violations: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def run(options: Options) -> Summary:
    """Break things for a while, heal everything, let it come to rest, and compare. Needs a process of its own."""
    from tests.faults import servers  # imports no settings

    own_mounts = servers.leave_mounts_to_ourselves()
    folder = Path(tempfile.mkdtemp(prefix="removal-faults-", dir="/tmp"))
    folder.chmod(0o711)  # root's server runs as nobody, who has to pass through
    say(f"seed {options.seed}, {options.seconds:.0f} s, in {folder}")
    postgres = servers.Postgres(folder, megabytes=DISK_MEGABYTES if own_mounts else 0)
    redis = servers.Redis(folder) if servers.Redis.is_installed() else None
    if redis is None:
        say("redis-server is not installed: hints go through a folder, and the broker's faults are left out")
    if not own_mounts:
        say("not root: the disk does not run full")
    set_up_django(folder, postgres, redis)
    rig = Rig(options, folder, postgres, redis)
    try:
        summary = rig.run()
    finally:
        rig.stop()
        postgres.close()
        if redis:
            redis.kill()
    if summary.violations or summary.differences or options.keep:
        say(f"kept: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return summary


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)  # noqa: T201  # what a person at a terminal sees


def set_up_django(folder: Path, postgres: "Postgres", redis: "Redis | None") -> None:
    """Point this process at the servers themselves; the installation's processes meet them through proxies."""
    os.environ.update(
        {
            # A worker that the rig has stopped may hold a lock that the rig's own step waits for.
            "DATABASE_URL": f"{postgres.url}&options=-c%20lock_timeout%3D2s",
            "BROKER_URL": f"redis://127.0.0.1:{redis.port}/0" if redis else "filesystem://localhost",
            "BROKER_QUEUE": "removal-faults",
            "REMOVAL_VAR": str(folder),
            "SECRET_KEY": "only for tests",
            "ENCRYPTION_KEYS": Fernet.generate_key().decode(),
            "ALLOWED_HOSTS": "127.0.0.1",
            "PARTNER_ALLOW_HTTP": "1",
            "PARTNER_ALLOWED_NETWORKS": "127.0.0.0/8",
            "DELIVERY_DEADLINE_SECONDS": str(DEADLINE_SECONDS),
            "DELIVERY_LEASE_SECONDS": str(LEASE_SECONDS),
            "SWEEP_INTERVAL_SECONDS": "1",
            "RECONCILE_INTERVAL_SECONDS": "5",
            "DJANGO_SETTINGS_MODULE": "removal.config.settings",
            "LOG_LEVEL": "WARNING",
        }
    )
    import django

    django.setup()


def crash_points() -> list[str]:
    """List the points that the product names, as its source has them."""
    source = "".join(path.read_text() for path in (ROOT / "removal").rglob("*.py"))
    found = set(re.findall(r"crashpoint\(\s*\"(\w+)\"", source))
    return sorted(point for point in found if "_staff_" not in point)  # nobody is told here that something is late


class Rig:
    """The installation, its load, and the faults that can befall it."""

    def __init__(self, options: Options, folder: Path, postgres: "Postgres", redis: "Redis | None") -> None:
        from removal.demo.processes import Processes, free_port
        from tests.faults.proxy import Proxy

        self.options = options
        self.folder = folder
        self.chance = random.Random(f"{options.seed}/faults")
        self.postgres = postgres
        self.redis = redis
        self.database_proxy = Proxy(("127.0.0.1", postgres.port))
        self.broker_proxy = Proxy(("127.0.0.1", redis.port)) if redis else None
        self.web_port = free_port()
        environment = {
            "DATABASE_URL": postgres.address("removal", port=self.database_proxy.port),
            "PUBLIC_URL": f"http://127.0.0.1:{self.web_port}",
        }
        if self.broker_proxy:
            environment["BROKER_URL"] = f"redis://127.0.0.1:{self.broker_proxy.port}/0"
        self.processes = Processes(logs=folder / "logs", environment=environment)
        self.ports = {slug: free_port() for slug, _, _ in PARTNERS}
        self.made: dict[str, NewPartner] = {}
        self.secrets: dict[str, list[str]] = {}
        self.paths = Counter[str]()
        self.clients: list[Client] = []
        self.undo: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.frozen: set[str] = set()
        self.calm = False
        self.done = Counter[str]()
        self.markers = 0
        self.started = 0.0

    # --- the installation ---

    def run(self) -> Summary:
        self.prepare()
        self.started = time.monotonic()
        self.break_things()
        self.stop_load()
        settled = self.heal()
        return self.compare(settled)

    def prepare(self) -> None:
        from django.core.management import call_command
        from django.db import connection

        from partners.models import ApiKey
        from removal import verification
        from removal.partnerships import add_partner
        from tests.factories import disclose, make_release
        from tests.faults.load import SUBJECTS, Client
        from tests.faults.oracle import WATCH_DELIVERIES

        call_command("migrate", verbosity=0)
        with connection.cursor() as cursor:
            cursor.execute(WATCH_DELIVERIES)
        _, platform_key = ApiKey.create(source="blogs")
        from django.utils import timezone

        for slug, _, limits in PARTNERS:
            self.made[slug] = add_partner(
                actor="rig", slug=slug, name="", url=self.address_of(slug), now=timezone.now(), **limits
            )
            verification.waive(actor="rig", slug=slug, reason="its answers are the rig's to spoil")
            self.secrets[slug] = [self.made[slug].secret]
            self.start_partner(slug)
        for name, subjects in (("r1", range(SUBJECTS)), ("r2", range(0, SUBJECTS, 2)), ("r3", range(100))):
            release = make_release(name, contents={f"site:{n}": ["post:1", "post:2"] for n in subjects})
            for slug, _, _ in PARTNERS:
                if (name, slug) != ("r2", "steady"):
                    disclose(release, self.made[slug].partner)
        self.start_web()
        for name in WORKERS:
            self.start_worker(name)
        self.clients = [
            Client(
                url=f"http://127.0.0.1:{self.web_port}",
                name_=f"client{n}",
                seed=self.options.seed,
                platform_key=platform_key,
                partner_keys={slug: made.api_key for slug, made in self.made.items()},
                logs={slug: self.log_of(slug) for slug in self.made},
            )
            for n in range(2)
        ]
        for client in self.clients:
            client.start()

    def address_of(self, slug: str) -> str:
        return f"http://127.0.0.1:{self.ports[slug]}/v{self.paths[slug]}"

    def log_of(self, slug: str) -> Path:
        return self.folder / f"{slug}.witness"

    def instruct(self, slug: str) -> None:
        """Tell a partner which secrets it knows, and whether it is calm."""
        control = self.folder / f"{slug}.control"
        new = control.with_suffix(".new")
        new.write_text(json.dumps({"secrets": self.secrets[slug], "calm": self.calm}))
        new.rename(control)

    def start_partner(self, slug: str) -> None:
        self.instruct(slug)
        character = next(character for name, character, _ in PARTNERS if name == slug)
        self.processes.start(
            slug, "-m", "tests.faults.partner", "--slug", slug, "--port", str(self.ports[slug]),
            "--seed", str(self.options.seed), "--character", character, "--log", str(self.log_of(slug)),
            "--control", str(self.folder / f"{slug}.control"),
        )  # fmt: skip

    def start_web(self, **environment: str) -> None:
        self.processes.start(
            "web", "-m", "gunicorn", "removal.config.wsgi", "--bind", f"127.0.0.1:{self.web_port}",
            "--worker-class", "gthread", "--threads", "8", "--no-control-socket", environment=environment,
        )  # fmt: skip

    def start_worker(self, name: str, **environment: str) -> None:
        """Start a worker. The second one hears no hint: all it does, it finds by itself."""
        if name == "second":
            environment["BROKER_QUEUE"] = "removal-faults-nobody"
        module = "celery" if self.options.fencing else "tests.faults.unfenced"
        self.processes.start(
            name, "-m", module, "--app", "removal.config", "worker", "--concurrency", "2" if name == "first" else "1",
            "--without-gossip", "--without-mingle", "--hostname", f"{name}-{os.getpid()}@%h", environment=environment,
        )  # fmt: skip

    def restart(self, name: str, **environment: str) -> None:
        self.kill(name)
        self.launch(name, **environment)

    def launch(self, name: str, **environment: str) -> None:
        if name == "web":
            self.start_web(**environment)
        elif name in self.made:
            self.start_partner(name)
        else:
            self.start_worker(name, **environment)

    def kill(self, name: str) -> None:
        self.frozen.discard(name)
        if name in self.processes.running:
            with suppress(ProcessLookupError):  # it has ended by itself, and its children too
                self.processes.kill(name)

    def signal(self, name: str, number: signal.Signals) -> None:
        process = self.processes.running.get(name)
        if process is not None and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def supervise(self) -> None:
        """Start again what has ended by itself, as any supervisor does."""
        for name, process in list(self.processes.running.items()):
            if process.poll() is not None:
                say(f"{name} ended with code {process.returncode}")
                self.done[f"restarted_{name}"] += 1
                with suppress(ProcessLookupError):  # children that it has left behind
                    os.killpg(process.pid, signal.SIGKILL)
                self.frozen.discard(name)
                self.launch(name)

    def stop(self) -> None:
        for client in self.clients:
            client.stopping.set()
        for name in list(self.processes.running):
            self.signal(name, signal.SIGCONT)
            self.kill(name)
        self.database_proxy.close()
        if self.broker_proxy:
            self.broker_proxy.close()

    # --- faults ---

    def faults(self) -> dict[str, Callable[[], None]]:
        kinds: dict[str, Callable[[], None]] = {
            "kill_worker": lambda: self.restart(self.some_worker()),
            "kill_child": self.kill_child,
            "crash_point": self.crash_point,
            "freeze_worker": self.freeze_worker,
            "freeze_at_point": self.freeze_at_point,
            "kill_web": lambda: self.restart("web"),
            "restart_postgres": self.restart_postgres,
            "cut_commits": lambda: self.database_proxy.cut_after_commits(self.chance.randint(1, 5)),
            "cut_bytes": self.cut_bytes,
            "reset_database": self.database_proxy.reset_all,
            "slow_database": self.slow_database,
            "pause_partner": self.pause_partner,
            "change_url": self.change_url,
            "rotate_key": self.rotate_key,
            "freeze_partner": self.freeze_partner,
            "kill_partner": lambda: self.restart(self.some_partner()),
            "time_passes": self.let_time_pass,
        }
        if self.postgres.can_fill:
            kinds["fill_disk"] = self.fill_disk
        if self.redis and self.broker_proxy:
            kinds |= {
                "flush_broker": self.flush_broker,
                "refuse_broker": lambda: self.switch_broker("refuse", 3),
                "silence_broker": lambda: self.switch_broker("silent", 4),
                "drop_broker": lambda: self.switch_broker("drop", 3),
                "restart_broker": self.restart_broker,
                "freeze_broker": self.freeze_broker,
                "flood_hints": self.flood_hints,
            }
        if not self.options.fencing:
            # What the missing fence lets through comes only of this, so let there be more of it.
            kinds |= {f"freeze_again_{n}": self.freeze_at_point for n in range(4)}
        unknown = set(self.options.only) - kinds.keys()
        if unknown:
            raise SystemExit(f"No such fault: {', '.join(sorted(unknown))}. There are: {', '.join(kinds)}.")
        return {name: fault for name, fault in kinds.items() if not self.options.only or name in self.options.only}

    def break_things(self) -> None:
        """Draw faults from a bag that holds each kind once, and fill it again; so each comes at least once."""
        kinds = self.faults()
        bag = self.chance.sample(list(kinds), len(kinds))
        end = self.started + self.options.seconds
        while time.monotonic() < end or not kinds.keys() <= self.done.keys():
            self.wait(self.chance.uniform(0.3, 1.2))
            bag = bag or self.chance.sample(list(kinds), len(kinds))
            name = bag.pop()
            say(f"{time.monotonic() - self.started:6.1f} s  {name}")
            self.attempt(kinds[name])
            self.done[name] += 1

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            self.supervise()
            while self.undo and min(self.undo)[0] <= time.monotonic():
                due = min(self.undo)
                self.undo.remove(due)
                self.attempt(due[2])
            if time.monotonic() >= end:
                return
            time.sleep(0.1)

    def attempt(self, step: Callable[[], None]) -> None:
        """Do something of the rig's own, which may itself meet a fault that it has made."""
        from django.db import Error, connection

        try:
            step()
        except (Error, OSError) as error:
            say(f"          the rig's own step failed: {type(error).__name__}: {str(error)[:100]}")
            connection.close()

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        self.undo.append((time.monotonic() + seconds, next(self.order), step))

    def some_worker(self) -> str:
        """Choose a worker. One that is stopped is left alone: what it does when it wakes up is the point of it."""
        return self.chance.choice([name for name in WORKERS if name not in self.frozen])

    def some_partner(self) -> str:
        return self.chance.choice(list(self.made))

    def kill_child(self) -> None:
        """Kill one of a worker's own children, as the kernel does when memory is short."""
        parent = self.processes.running[self.some_worker()].pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if children:
            os.kill(int(self.chance.choice(children)), signal.SIGKILL)

    def crash_point(self) -> None:
        self.restart_to_crash(self.chance.choice(crash_points()), f"%{self.chance.randint(1, 3)}")

    def restart_to_crash(self, point: str, how: str) -> tuple[str, Path]:
        """Start a process again so that it dies or stops at a point; returns its name, and what tells that it has."""
        self.markers += 1
        marker = self.folder / f"crash-{self.markers}-{point}"
        # Steps of the API have the names that intake uses; all others are the workers'.
        name = "web" if point in WEB_POINTS else self.some_worker()
        say(f"          at {point}{how} in {name}")
        self.restart(name, CRASH_AT=f"{point}{how}:{marker}")
        return name, marker

    def freeze_worker(self) -> None:
        """Stop a worker for longer than its lease: what it does then must count for nothing."""
        if self.frozen:
            return  # the other one is needed, to take over meanwhile
        name = self.some_worker()
        self.signal(name, signal.SIGSTOP)
        self.frozen.add(name)
        self.later(LEASE_SECONDS + self.chance.uniform(1.5, 3), lambda: self.thaw(name))

    def freeze_at_point(self) -> None:
        """The same for one process of a worker, at a point: before a commit it holds locks, after one a claim."""
        points = [point for point in crash_points() if point not in WEB_POINTS]
        if not self.frozen and points:
            name, marker = self.restart_to_crash(self.chance.choice(points), "~")
            self.frozen.add(name)
            self.later(1, lambda: self.thaw_later(name, marker, looks=12))

    def thaw_later(self, name: str, marker: Path, *, looks: int) -> None:
        """Wait until it has stopped, or has met nothing to stop at; then for its lease; then wake it up."""
        if marker.exists():
            self.later(LEASE_SECONDS + self.chance.uniform(1.5, 2), lambda: self.thaw(name))
        elif looks:
            self.later(0.5, lambda: self.thaw_later(name, marker, looks=looks - 1))
        else:
            marker.touch()
            self.thaw(name)

    def thaw(self, name: str) -> None:
        self.frozen.discard(name)
        self.signal(name, signal.SIGCONT)

    def freeze_partner(self) -> None:
        name = self.some_partner()
        self.signal(name, signal.SIGSTOP)
        self.later(self.chance.uniform(1, 5), lambda: self.signal(name, signal.SIGCONT))

    def restart_postgres(self) -> None:
        from django.db import connection

        self.postgres.restart_at_once()
        connection.close()

    def cut_bytes(self) -> None:
        self.database_proxy.cut_after_bytes(self.chance.randint(500, 20000))
        self.later(1, lambda: self.database_proxy.cut_after_bytes(None))

    def slow_database(self) -> None:
        from tests.faults.proxy import Mode

        self.database_proxy.switch(Mode.DELAY, delay_seconds=self.chance.uniform(0.02, 0.1))
        self.later(1.5, lambda: self.database_proxy.switch(Mode.PASS))

    def fill_disk(self) -> None:
        self.postgres.fill_disk()
        self.wait(2)
        self.postgres.free_disk()

    def flush_broker(self) -> None:
        import redis

        if self.redis:
            with suppress(redis.RedisError):  # it may be stopped, or away
                self.redis.flush()

    def switch_broker(self, mode: str, seconds: float) -> None:
        from tests.faults.proxy import Mode

        proxy = self.broker_proxy
        if proxy:
            proxy.switch(Mode(mode))
            self.later(seconds, lambda: proxy.switch(Mode.PASS))

    def restart_broker(self) -> None:
        if self.redis:
            self.redis.kill()
            self.later(self.chance.uniform(0, 2), self.redis.start)

    def freeze_broker(self) -> None:
        server = self.redis
        if server:
            server.signal(signal.SIGSTOP)
            self.later(5, lambda: server.signal(signal.SIGCONT))

    def flood_hints(self) -> None:
        """Give the same hint ten thousand times."""
        import redis
        from kombu.exceptions import OperationalError

        if self.redis:
            partner_id = self.made[self.some_partner()].partner.pk
            with suppress(redis.RedisError, OperationalError):  # it may be stopped, or away
                self.redis.flood(queue="removal-faults", partner_id=partner_id, count=10_000)

    def pause_partner(self) -> None:
        slug = self.some_partner()
        self.set_paused(slug, paused=True)
        self.later(self.chance.uniform(0.5, 3), lambda: self.set_paused(slug, paused=False))

    def set_paused(self, slug: str, *, paused: bool) -> None:
        from removal.partnerships import set_paused

        set_paused(actor="rig", slug=slug, paused=paused)

    def change_url(self) -> None:
        slug = self.some_partner()
        self.paths[slug] += 1
        self.set_url(slug)

    def set_url(self, slug: str) -> None:
        from removal import verification

        try:
            verification.waive(actor="rig", slug=slug, url=self.address_of(slug), reason="the rig moves it at once")
        except verification.NothingToWaive:  # it is there already: what waits is tried again
            self.set_paused(slug, paused=True)
            self.set_paused(slug, paused=False)

    def rotate_key(self) -> None:
        from django.utils import timezone

        from partners.keys import MAX_SECRETS
        from partners.models import Secret
        from removal.partnerships import revoke_secret, rotate_secret

        slug, now = self.some_partner(), timezone.now()
        outbound = Secret.objects.filter(partner__slug=slug, direction=Secret.Direction.OUTBOUND)
        signing = outbound.filter(algorithm=Secret.Algorithm.HMAC).active(now=now)
        if len(signing) >= MAX_SECRETS:
            revoke_secret(actor="rig", slug=slug, key_id=signing.earliest("pk").key_id, now=now)
        self.secrets[slug].append(rotate_secret(actor="rig", slug=slug, now=now))
        # It forgets all but the newest two; a message that was claimed before the rotation has the older one only.
        self.secrets[slug] = self.secrets[slug][-2:]
        self.instruct(slug)

    def let_time_pass(self) -> None:
        """Make everything due that waits, as hours would."""
        from django.db import transaction

        for made in self.made.values():
            with transaction.atomic():
                self.make_due(made.partner.pk)

    def make_due(self, partner_id: int) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("set local lock_timeout = '2s'")
            cursor.execute("select from removal_stream where partner_id = %s for no key update", [partner_id])
            cursor.execute(
                "update removal_stream set probe_at = clock_timestamp()"
                " where partner_id = %s and probe_at > clock_timestamp()",
                [partner_id],
            )
            cursor.execute(
                "update removal_delivery set due_at = clock_timestamp()"
                " where stream_id = %s and state = 'waiting' and due_at > clock_timestamp()",
                [partner_id],
            )

    # --- heal, and compare ---

    def stop_load(self) -> None:
        for client in self.clients:
            client.stopping.set()
        for client in self.clients:
            client.join(timeout=60)

    def heal(self) -> float | None:
        """End every fault, and wait until nothing is left to do; returns the seconds, or None if it was too long."""
        from tests.faults.proxy import Mode

        say("heal")
        if self.postgres.can_fill:
            self.postgres.free_disk()
        while self.undo:  # a worker that is stopped stays so until its lease is over
            self.wait(0.2)
        self.database_proxy.cut_after_commits(0)
        self.database_proxy.cut_after_bytes(None)
        self.database_proxy.switch(Mode.PASS)
        if self.broker_proxy:
            self.broker_proxy.switch(Mode.PASS)
        self.calm = True
        for slug in self.made:
            self.instruct(slug)
        for name in list(self.processes.running):
            self.signal(name, signal.SIGCONT)
        healed = time.monotonic()
        due = 0.0
        while time.monotonic() < healed + SETTLE_SECONDS:
            if time.monotonic() > due:
                due = time.monotonic() + 5
                for slug in self.made:
                    self.attempt(lambda slug=slug: self.set_paused(slug, paused=False))  # type: ignore[misc]
                    # As staff do after an outage: the address is confirmed, which ends suspensions and waiting.
                    self.attempt(lambda slug=slug: self.set_url(slug))  # type: ignore[misc]
            self.wait(0.3)
            left: dict[str, int] = {}
            self.attempt(lambda: left.update(self.left()))  # noqa: B023  # called at once
            if left and not any(left.values()):
                return time.monotonic() - healed
        say(f"not at rest: {left}")
        return None

    def left(self) -> dict[str, int]:
        """Count what is still to be done; a message in quarantine is answered for by its partner."""
        from django.db import connection

        from removal.models import Delivery

        for delivery in Delivery.objects.filter(state="quarantined").select_related("stream__partner"):
            for sequence in range(delivery.first_sequence or 1, (delivery.last_sequence or 0) + 1):
                self.clients[0].complete(delivery.stream.partner.slug, sequence)
        with connection.cursor() as cursor:
            cursor.execute(
                """
                select (select count(*) from removal_removalrequest
                         where round is null and repeats_id is null and withdrawn_at is null or is_matching),
                       (select count(*) from removal_disclosure d
                         where not exists (select from removal_planneddisclosure p where p.disclosure_id = d.id)),
                       (select count(*) from removal_delivery where state not in ('delivered', 'split')),
                       (select count(*) from removal_stream where packed_through < head)
                """
            )
            return dict(zip(("requests", "disclosures", "messages", "streams"), cursor.fetchone(), strict=True))

    def compare(self, settled: float | None) -> Summary:
        from django.db import connection

        from removal.models import Attempt, Delivery, Notice, RemovalRequest
        from tests.faults import oracle

        calls = [call for client in self.clients for call in client.calls]
        summary = Summary(self.options.seed, self.options.seconds, self.options.fencing)
        summary.faults = dict(sorted(self.done.items()))
        summary.faults["commits_cut"] = self.database_proxy.commits_cut
        summary.calls = dict(sorted(Counter(f"{call.kind}_{call.outcome}" for call in calls).items()))
        summary.settled_seconds = settled and round(settled, 1)
        if settled is None:
            summary.violations.append(f"not at rest {SETTLE_SECONDS} s after everything was healed: {self.left()}")
        with connection.cursor() as cursor:
            cursor.execute("vacuum analyze")
        summary.rows = {
            model.__name__.lower(): model.objects.count() for model in (RemovalRequest, Notice, Delivery, Attempt)
        }
        summary.late_results = Attempt.objects.exclude(late_outcome="").count()
        summary.witnessed = {slug: len(oracle.read_log(self.log_of(slug))) for slug in self.made}
        summary.violations += oracle.broken_promises() + oracle.stale_records() + oracle.wrong_changes()
        summary.violations += oracle.differences_from_clients(calls, source="blogs")
        for slug in self.made:
            summary.differences += oracle.differences_from_witness(
                slug=slug, log=self.log_of(slug), origin=f"http://127.0.0.1:{self.ports[slug]}"
            )
        return summary


def run_as_process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ``python -m tests.faults`` as a test does: on a machine's own terms, with none of pytest's settings."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    return subprocess.run(
        [sys.executable, "-m", "tests.faults", *arguments],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def as_json(summary: Summary) -> str:
    said: dict[str, Any] = vars(summary)
    return json.dumps(said, indent=1)
