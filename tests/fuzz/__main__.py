"""``python -m tests.fuzz --seconds 300``: the real server, asked everything that its description allows, and more.

Exits with 1, and prints the request that shows it, when an answer is a 5xx or not as /openapi.json describes it. It
takes a PostgreSQL of its own, or a new database on the server of DATABASE_URL.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests

from tests.bench.measure import database, database_url
from tests.conftest import ROOT

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
    "unsupported_method",
    "missing_required_header",
    "lines_are_as_described",
)
RELEASES = ("sealed", "building", "in-parts", "empty")
PARTNERS = ("acme", "hashed")


def make_data() -> dict[str, str]:
    """Make a small ledger with something in every state; returns the keys of a platform and of a partner."""
    from partners.models import ApiKey
    from removal import ledger, planning, uploads
    from removal.models import Stream
    from tests.factories import disclose, make_partner, make_release, make_wish, record

    contents = {f"site:{n}": ["post:1", "post:2"] for n in range(20)}
    sealed = make_release("sealed", contents=contents)
    make_release("building", contents=contents, sealed=False)
    for name in ("in-parts", "empty"):
        ledger.create_release(actor="test", name=name, dataset="posts", source="")
    uploads.put_part(
        actor="test",
        name="in-parts",
        number=2,
        entries=[ledger.Entry(1, "site:1", ["post:1"])],
        digest=lambda: bytes(32),
        one_line_each=True,
    )
    acme, hashed = make_partner("acme"), make_partner("hashed", identifiers="hmac_sha256")
    for made in (acme, hashed):
        disclose(sealed, made.partner)
    _, platform_key = ApiKey.create(source="blogs")
    for n in range(10):
        record(make_wish(f"site:{n}"))
    record(make_wish("site:1", kind="reinstatement"))
    planning.plan(budget=timedelta(seconds=30))
    for stream in Stream.objects.all():
        Stream.objects.filter(pk=stream.pk).update(packed_through=stream.head - 1)  # the last is not sent yet
    return {"PlatformKey": platform_key, "PartnerKey": hashed.api_key}


def configuration(keys: dict[str, str]) -> str:
    """Say, in schemathesis' own words, who is who and which names are worth trying."""
    from removal.models import RemovalRequest

    names = {
        "releases": list(RELEASES),
        "slugs": list(PARTNERS),
        "requests": list(RemovalRequest.objects.order_by("id").values_list("public_id", flat=True)),
        "subjects": ["site:1", "site:2", "site:nobody"],
        "numbers": [1, 2, 3, 11, 2**63 - 1],
    }
    bound = {
        "path.name": "releases", "path.slug": "slugs", "path.public_id": "requests", "path.subject": "subjects",
        "path.sequence": "numbers", "path.number": "numbers", "query.subject": "subjects", "query.release": "releases",
        "body.subject": "subjects", "body.partner": "slugs", "body.sequence": "numbers", "body.through": "numbers",
    }  # fmt: skip
    lines = ["[generation]", "database = 'none'"]
    for scheme, key in keys.items():
        lines += [f"[auth.openapi.{scheme}]", f"bearer = {json.dumps(key)}"]
    for name, values in names.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(values)}"]
    lines += ["[parameters]"]
    lines += [f'"{where}" = {{dictionary = "{name}", probability = 0.5}}' for where, name in bound.items()]
    return "\n".join(lines)


def misdescribe(description: dict[str, Any]) -> None:
    """Say what is not so about one field of a JSON answer and one of an NDJSON answer: a run must find both."""
    schemas = description["components"]["schemas"]
    schemas["ReleaseStatus"]["properties"]["dataset"] = {"type": "integer"}
    schemas["PreferenceAnswer"]["properties"]["line"] = {"type": "string"}


def run(*, seconds: int, seed: int, wrongly: bool = False) -> int:
    """Start the server on a database of its own and let schemathesis at it; returns its exit code."""
    with tempfile.TemporaryDirectory(prefix="removal-fuzz-", dir="/tmp") as folder, database():
        from removal.demo.processes import Processes, free_port

        keys = make_data()
        config = Path(folder) / "schemathesis.toml"
        config.write_text(configuration(keys))
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        environment = {"DATABASE_URL": database_url(), "ALLOWED_HOSTS": "127.0.0.1", "PUBLIC_URL": url}
        with Processes(logs=Path(folder) / "logs", environment=environment) as processes:
            processes.start_web(port=port)
            description = requests.get(f"{url}/openapi.json", timeout=30).json()
            if wrongly:
                misdescribe(description)
            described = Path(folder) / "openapi.json"
            described.write_text(json.dumps(description))
            asked = subprocess.run(
                [
                    *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
                    *("--config-file", str(config), "run", str(described), "--url", url),
                    *("--checks", ",".join(CHECKS)),
                    *("--max-time", str(seconds), "--seed", str(seed), "--continue-on-failure", "--no-color"),
                    *("--request-timeout", "30", "--output-sanitize", "false", "--warnings", "off"),
                ],
                cwd=folder,  # where it leaves what it remembers, lest one run depends on another
                env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(ROOT)},
                check=False,
            )
            processes.check()  # the server is still there
            if asked.returncode:
                print(processes.last_words("web"), file=sys.stderr)  # noqa: T201  # what it is for
        return asked.returncode


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None, help="what was printed by a run that is to be repeated")
    parser.add_argument("--misdescribed", action="store_true", help="against a wrong description: must find it out")
    given = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if given.seed is None else given.seed
    sys.exit(run(seconds=given.seconds, seed=seed, wrongly=given.misdescribed))


if __name__ == "__main__":
    main()
