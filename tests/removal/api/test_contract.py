"""What is published of our messages, and that every message keeps to it.

docs/schemas/ holds what was published. After a field was added, ``UPDATE_SCHEMAS=1 python -m pytest`` with this file
writes it anew; what would break a receiver is refused all the same.
"""

import copy
import json
import os
from datetime import timedelta
from typing import Any

import jsonschema_rs
import pytest
from django.utils import timezone
from pydantic import TypeAdapter
from pytest_django import Settings

from partners.models import Partner
from removal import delivery, escalation, payload, planning, reminders, verification
from removal.api import contract
from removal.models import DeliveryBody, Notice
from tests.conftest import ROOT
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.removal.api.conftest import Caller
from tests.removal.api.test_identifiers import KINDS, messages_of, tell_of_everything

PUBLISHED = ROOT / "docs/schemas/notices-v1.json"

Schema = dict[str, Any]


def validator() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(contract.schema(), validate_formats=True)


def faults_of(message: Any) -> list[str]:
    """List what is wrong with a message, against the schema of its own type, where ``oneOf`` would say only that."""
    named = contract.MESSAGES[message["type"]][0].__name__
    schema = contract.schema()
    one = {"$ref": f"#/$defs/{named}", "$defs": schema["$defs"]}
    own = jsonschema_rs.Draft202012Validator(one, validate_formats=True)
    faults = [f"{list(fault.instance_path)}: {fault.message}" for fault in own.iter_errors(message)]
    return faults or ([] if validator().is_valid(message) else ["it is valid as another type of message, too"])


def breaks(published: Schema, now: Schema, *, where: str = "") -> list[str]:
    """Say what in ``now`` a receiver that was built on ``published`` would not expect. What was added is no break."""
    found = []
    for name, definition in published.get("$defs", {}).items():
        if name not in now["$defs"]:
            found.append(f"{name} is gone")
        else:
            found += breaks(definition, now["$defs"][name], where=name)
    for name, field in published.get("properties", {}).items():
        if name not in now.get("properties", {}):
            found.append(f"{where}.{name} is gone")
        else:
            found += breaks(field, now["properties"][name], where=f"{where}.{name}")
    if "items" in published and "items" in now:
        found += breaks(published["items"], now["items"], where=f"{where}[]")
    lost = [name for name in published.get("required", ()) if name not in now.get("required", ())]
    found += [f"{where}.{name} may be missing now" for name in lost]
    for word in ("type", "const", "$ref", "format", "minimum", "minLength", "enum", "pattern"):
        if word in published and published[word] != now.get(word):
            found.append(f"{where} had {word} {published[word]!r}, and has {now.get(word)!r} now")
    if "oneOf" in published:
        found += [f"{one['$ref']} is not sent any more" for one in published["oneOf"] if one not in now["oneOf"]]
    return found


def test_what_was_published_still_holds(settings: Settings) -> None:
    settings.PUBLIC_URL = "https://removal.example"
    now = contract.schema()
    if PUBLISHED.exists():
        published = json.loads(PUBLISHED.read_text())
        assert breaks(published, now) == [], (
            "Receivers rely on this. Add fields, and leave those that are there; what must change gets a new version."
        )
    if "UPDATE_SCHEMAS" in os.environ:
        PUBLISHED.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n")
    published = json.loads(PUBLISHED.read_text())
    assert published == now, (
        "Something was added. UPDATE_SCHEMAS=1 python -m pytest tests/removal/api/test_contract.py writes it down."
    )


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda defs: defs.pop("Held"), ["Held is gone"]),
        (lambda defs: defs["Notice"]["properties"].pop("undoes"), ["Notice.undoes is gone"]),
        (
            lambda defs: defs["Notice"]["properties"].update(sequence={"type": "string"}),
            [
                "Notice.sequence had type 'integer', and has 'string' now",
                "Notice.sequence had minimum 1, and has None now",
            ],
        ),
        (
            lambda defs: defs["Held"]["properties"]["items"].update(items={"type": "integer", "minLength": 1}),
            ["Held.items[] had type 'string', and has 'integer' now"],
        ),
        (lambda defs: defs["Notice"]["required"].remove("kind"), ["Notice.kind may be missing now"]),
        (lambda defs: defs["Notice"]["properties"].update(colour={"type": "string"}), []),
        (lambda defs: defs.update(More={"type": "object"}), []),
    ],
)  # fmt: skip
def test_a_change_that_breaks_receivers_is_told_from_an_addition(change: Any, found: list[str]) -> None:
    now = copy.deepcopy(contract.schema())
    change(now["$defs"])
    assert breaks(contract.schema(), now) == found


def test_the_schema_is_published_and_linked(stranger: Caller) -> None:
    response = stranger.get("/schemas/notices-v1.json")
    assert response.status_code == 200
    assert response["Content-Type"] == "application/schema+json"
    schema = response.json()
    assert schema["$id"] == "http://testserver/schemas/notices-v1.json"
    assert jsonschema_rs.meta.is_valid(schema)
    assert schema == contract.schema()


@pytest.mark.django_db
def test_the_description_has_the_same_messages(stranger: Caller) -> None:
    assert stranger.get("/.well-known/removal-notices").json()["schemas"] == {
        "notices-v1": "http://testserver/schemas/notices-v1.json"
    }
    described = stranger.get("/openapi.json").json()
    assert described["webhooks"].keys() == {"removal.notices", "removal.ping", "removal.reminder"}
    of_schema = json.dumps(contract.schema()["$defs"]).replace("#/$defs/", "#/components/schemas/")
    for name, definition in json.loads(of_schema).items():
        assert described["components"]["schemas"][name] == definition
    for kind, webhook in described["webhooks"].items():
        body = webhook["post"]["requestBody"]["content"]["application/json"]
        assert webhook["post"]["externalDocs"]["url"] == contract.address()
        assert body["example"]["type"] == kind
        assert faults_of(body["example"]) == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("identifiers", Partner.Identifiers.values)
def test_messages_of_every_kind_are_valid(identifiers: str) -> None:
    made = make_partner("acme", identifiers=identifiers)
    tell_of_everything(made.partner)

    messages = messages_of(made.partner)

    assert [faults_of(message) for message in messages] == [[]] * len(messages)
    notices = [notice for message in messages for notice in message["data"]["notices"]]
    assert {notice["kind"] for notice in notices} == KINDS
    fields = {field for notice in notices for field in notice}
    assert fields == contract.schema()["$defs"]["Notice"]["properties"].keys()  # none is described that is never sent
    for message in messages:  # the types that they are made of say so too
        assert TypeAdapter(payload.NoticesMessage).validate_python(message, strict=True) == message


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("identifiers", Partner.Identifiers.values)
def test_pings_samples_and_reminders_that_are_made_are_valid(identifiers: str) -> None:
    partner = make_partner("acme", identifiers=identifiers).partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    record(make_wish("site:1"))
    planning.plan(budget=timedelta(seconds=5))
    delivery.claim(partner_id=partner.pk)
    planned_at = timezone.now() - timedelta(days=16)
    Notice.objects.update(planned_at=planned_at, respond_by=planned_at + timedelta(days=30))
    escalation.look()
    assert reminders.remind() == 1
    samples = verification.make_samples(slug="acme", epoch=1, head=1, now=timezone.now())
    [reminder] = DeliveryBody.objects.filter(delivery__first_sequence=None)

    made = {
        "removal.ping": samples.ping,
        "removal.notices": samples.notice,
        "removal.reminder": bytes(reminder.body),
    }

    for kind, body in made.items():
        message = json.loads(body)
        assert (message["type"], faults_of(message)) == (kind, [])
        assert TypeAdapter(contract.MESSAGES[kind][0]).validate_python(message, strict=True) == message
    if identifiers != Partner.Identifiers.RAW:
        [due] = json.loads(bytes(reminder.body))["data"]["due"]
        assert due["respond_by"].endswith("T00:00:00Z")


def test_a_receiver_that_keeps_to_the_schema_takes_fields_that_it_does_not_know() -> None:
    message = copy.deepcopy(contract.MESSAGES["removal.notices"][2])
    message["data"]["notices"][0]["colour"] = "red"
    message["data"]["weather"] = "fine"
    assert faults_of(message) == []


@pytest.mark.parametrize(
    ("field", "value"), [("sequence", "1201"), ("items_total", -1), ("respond_by", "tomorrow"), ("undoes", [0])]
)
def test_what_is_no_such_message_is_not_valid(field: str, value: Any) -> None:
    message = copy.deepcopy(contract.MESSAGES["removal.notices"][2])
    message["data"]["notices"][0][field] = value
    assert len(faults_of(message)) == 1


def test_the_example_is_the_guides() -> None:
    guide = (ROOT / "docs/partner-guide.md").read_text()
    shown = json.loads(guide.partition("```json\n")[2].partition("```")[0].replace("01JD…", "01JDEXAMPLE"))
    assert faults_of(shown) == []
    example = copy.deepcopy(contract.MESSAGES["removal.notices"][2])
    for notice in example["data"]["notices"]:
        notice["request"] = "01JDEXAMPLE"
    assert shown == example
