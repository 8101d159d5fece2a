"""Which of a partner's statements stand, whatever the database."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from django.db import connection

from removal import statements
from removal.models import Notice
from removal.statements import NamedItem, Statement


def say(status: str, **said: Any) -> Statement:
    return Statement(status=status, text="{}", **({"sequence": 1} | said))


@pytest.mark.django_db
def test_words_go_as_far_as_the_table_and_the_database_say() -> None:
    assert list(statements.RANK) == Notice.Handling.values
    assert set(Notice.TERMINAL) == statements.TERMINAL
    with connection.cursor() as cursor:
        sql = "select word, removal_handling_rank(word) from unnest(%s::text[]) word"
        cursor.execute(sql, [Notice.Handling.values])
        assert dict(cursor.fetchall()) == statements.RANK


@pytest.mark.parametrize(
    ("statement", "handling", "code"),
    [
        (say("received"), "none", None),
        (say("rejected"), "none", "reason_needed"),
        (say("rejected", reason="because"), "none", "reason_needed"),
        (say("rejected", reason="other", detail=" "), "none", "detail_needed"),
        (say("rejected", reason="other", detail="Not ours."), "none", None),
        (say("rejected", reason="no_match"), "none", None),
        (say("completed"), "none", None),
        (say("completed", outcomes={"removed": 2}), "none", None),
        (say("completed", outcomes={"removed": 1, "not_found": 1}), "none", None),
        (say("completed", outcomes={"removed": 1, "exempt": 1}), "none", "not_complete"),
        (say("completed", outcomes={"removed": 1, "cannot_comply": 1}), "none", "not_complete"),
        (say("completed", outcomes={"removed": 2, "exempt": 0, "cannot_comply": 0}), "none", None),
        (say("completed", outcomes={"exempt": 0}), "none", "outcomes_do_not_add_up"),
        (say("completed", outcomes={"removed": 3}), "none", "outcomes_do_not_add_up"),
        (say("partially_completed", outcomes={"removed": 1, "exempt": 1}), "none", None),
        (say("completed"), "completed", None),
        (say("in_progress"), "completed", None),
        (say("completed"), "rejected", "already_answered"),
        (say("completed", amends=True), "rejected", "already_answered"),
        (say("completed", amends=True, detail="Found it."), "rejected", None),
        (say("completed", items=[NamedItem(None, "post:1", "removed")] * 2), "none", None),
        (say("completed", items=[NamedItem(None, "post:1", "exempt")]), "none", "not_complete"),
        (say("completed", attestations=[{"claim": "backups_expire_by"}]), "none", "date_needed"),
        (
            say("completed", attestations=[{"claim": "backups_expire_by", "detail": "2027-02-30"}]),
            "none",
            "date_needed",
        ),
        (say("completed", attestations=[{"claim": "backups_expire_by", "detail": "20270131"}]), "none", "date_needed"),
        (say("completed", attestations=[{"claim": "backups_expire_by", "detail": "2027-01-31"}]), "none", None),
        (say("completed", attestations=[{"claim": "model_unchanged"}]), "none", None),
    ],
)
def test_what_stands_and_what_is_refused(statement: Statement, handling: str, code: str | None) -> None:
    refusal = statements.refuse(statement, handling=handling, items=2)
    assert (refusal and (refusal.sequence, refusal.code)) == (code and (1, code))


def test_outcomes_need_a_sequence() -> None:
    refusal = statements.refuse_alone(say("completed", sequence=None, through=7, outcomes={"removed": 1}))
    assert refusal
    assert (refusal.sequence, refusal.code) == (7, "outcomes_need_a_sequence")


@pytest.mark.parametrize(
    ("statement", "handling", "expected"),
    [
        (say("received"), "none", False),
        (say("received"), "received", True),
        (say("received"), "in_progress", True),
        (say("in_progress"), "received", False),
        (say("in_progress"), "in_progress", True),
        (say("completed"), "in_progress", False),
        (say("in_progress"), "completed", True),
        (say("completed"), "completed", True),
        (say("completed", amends=True, detail="Fewer than I said."), "completed", False),
        (say("completed", amends=True), "completed", True),
        (say("completed", amends=True, detail="Found it."), "rejected", False),
        (say("received", amends=True, detail="Once more."), "rejected", True),
    ],
)
def test_only_what_takes_a_notice_further_is_news(statement: Statement, handling: str, expected: bool) -> None:
    assert statements.repeats(statement, handling=handling) == expected


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ({"sequence": 4, "status": "received"}, [4]),
        ({"through": 5, "status": "completed"}, [3, 4, 5]),
        ({"acknowledgements": [{"sequence": 6, "status": "received"}, {"sequence": 3, "status": "rejected"}]}, [3, 6]),
        ({"acknowledgements": [{"sequence": 3, "status": "received"}, {"sequence": 7, "status": "received"}]}, []),
        ({"acknowledgements": []}, []),
        ({"acknowledgements": {}}, []),
        ({"sequence": 4, "status": "none"}, []),
        ({"sequence": 4, "status": ["received"]}, []),
        ({"sequence": 4, "status": {}}, []),
        ({"sequence": [4], "status": "received"}, []),
        ({"sequence": 2, "status": "received"}, []),
        ([{"sequence": 4, "status": "received"}], []),
        ({"sequence": 4, "epoch": 2, "status": "received"}, [4]),
        ({"sequence": 4, "epoch": 1, "status": "received"}, []),
        ({"sequence": 4, "through": 4, "status": "received"}, []),
    ],
)
def test_a_response_is_believed_whole_or_not_at_all(answer: object, numbers: Sequence[int]) -> None:
    assert list(statements.read_response(json.dumps(answer).encode(), epoch=2, first=3, last=6)) == numbers
