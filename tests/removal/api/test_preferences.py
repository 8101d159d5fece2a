"""What subjects allow, over HTTP."""

from typing import Any

import pytest

from removal.models import Preference
from tests.factories import make_wish, record
from tests.removal.api.conftest import NDJSON, Caller, lines_of, ndjson, problem_of, rows

PATH = "/v1/preferences"


def choice(subject: str = "site:1", **said: Any) -> dict[str, Any]:
    return {"subject": subject, "usage": "all", "value": "disallow", "source": "gpc"} | said


def test_each_line_is_recorded_and_answered_in_order(platform: Caller) -> None:
    record(make_wish("site:3"))
    response = platform.post_lines(
        PATH,
        choice("site:1"),
        b"",
        choice("site:1"),
        choice("site:2", usage="training"),
        choice("site:3", source="explicit", value="allow"),
        choice("site:1", value="allow", valid_from="2020-01-01T00:00:00Z"),
    )
    assert (response.status_code, response["Content-Type"]) == (200, NDJSON)
    words = "Write one of: all, train-ai, search, bulk-dataset."
    usage = {"code": "invalid_field", "message": words, "field": "usage"}
    stands = "An opt-out that partners are told about stands. Send a reinstatement request."
    late = "Something newer of the same source is in force. Leave valid_from out to change it from now on."
    assert lines_of(response) == [
        {"line": 1, "status": "created"},
        {"line": 3, "status": "unchanged"},
        {"line": 4, "status": "invalid", "error": usage},
        {"line": 5, "status": "conflict", "error": {"code": "opt_out_stands", "message": stands}},
        {"line": 6, "status": "conflict", "error": {"code": "too_late", "message": late}},
    ]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (choice(value="unknown"), "value"),
        (choice(source="somebody"), "source"),
        (choice(subject=""), "subject"),
        (choice(surprise=1), "surprise"),
        (choice(valid_from="2020-01-01"), "valid_from"),
        (choice(valid_from="2999-01-01T00:00:00Z"), "valid_from"),
        ({"subject": "site:1"}, "usage"),
        (b"[]", "body"),
    ],
)
def test_a_wrong_line_is_refused_and_the_others_stand(platform: Caller, line: Any, field: str) -> None:
    first, wrong, last = lines_of(platform.post_lines(PATH, choice("site:1"), line, choice("site:2")))
    assert (first["status"], last["status"]) == ("created", "created")
    assert (wrong["status"], wrong["error"]["field"]) == ("invalid", field)
    assert Preference.objects.count() == 2


def test_sending_a_file_again_changes_nothing(platform: Caller) -> None:
    body = ndjson(*(choice(f"site:{n}") for n in range(2500)))
    lines_of(platform.post(PATH, body, content_type=NDJSON))
    before = rows()
    answers = lines_of(platform.post(PATH, body, content_type=NDJSON))
    assert ({answer["status"] for answer in answers}, len(answers)) == ({"unchanged"}, 2500)
    assert rows() == before


def test_a_subject_shows_what_prevails_what_is_in_force_and_what_was(platform: Caller) -> None:
    subject = "site:example.com/a b?c"
    request = record(make_wish(subject, usages=("train-ai",)))
    lines_of(platform.post_lines(PATH, choice(subject, value="allow"), choice(subject)))
    shown = platform.get(f"{PATH}/site:example.com/a%20b%3Fc").json()
    assert shown["subject"] == subject
    opted_out = Preference.objects.get(request=request)
    by_gpc = Preference.objects.get(source="gpc", valid_to=None)
    assert shown["prevails"]["train-ai"] == {"value": "disallow", "rule": "explicit", "preference": opted_out.pk}
    assert shown["prevails"]["search"] == {"value": "disallow", "rule": "gpc", "preference": by_gpc.pk}
    assert [(row["source"], row["request"]) for row in shown["in_force"]] == [
        ("gpc", None),
        ("explicit", request.public_id),
    ]
    assert [(row["value"], row["valid_to"] is None) for row in shown["history"]] == [("allow", False)]


def test_a_subject_of_whom_nothing_is_known_is_a_problem(platform: Caller) -> None:
    unknown = (404, "unknown_subject", "Nothing was ever recorded about this subject.")
    assert problem_of(platform.get(f"{PATH}/site:9")) == unknown
    assert problem_of(platform.get(f"{PATH}/{'x' * 600}")) == unknown


def test_only_platforms_may_say_and_ask(partner: Caller, stranger: Caller) -> None:
    for caller, status in ((partner, 403), (stranger, 401)):
        assert caller.post_lines(PATH, choice()).status_code == status
        assert caller.get(f"{PATH}/site:1").status_code == status
    assert Preference.objects.count() == 0
