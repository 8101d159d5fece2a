"""``ledger`` answers about partners and requests, in words."""

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from removal import planning
from tests.factories import disclose, make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)


def ask(*arguments: str) -> str:
    out = StringIO()
    call_command("ledger", *arguments, stdout=out)
    return out.getvalue()


def test_what_a_partner_holds_and_owes() -> None:
    handover = disclose(make_release("r", contents={"site:1": ["post:1", "post:2"]}), make_partner("acme").partner)
    request = record(make_wish("site:1"))
    planning.plan(budget=timedelta(seconds=5))
    first, total, due = ask("holdings", "acme").splitlines()
    assert first == f"r\tsealed\t1 subjects\t2 items\t1 handovers, first {handover.disclosed_at:%Y-%m-%dT%H:%M:%SZ}"
    assert total == "acme was given 2 items in 1 releases, and has 1 notices to answer, 0 of them overdue."
    assert due.startswith(f"The first that is due: number 1, request {request.public_id}, by ")
    make_partner("globex")
    assert ask("holdings", "globex").startswith("globex was given 0 items in 0 releases")


def test_what_slipped_through_and_where_the_content_is() -> None:
    partner = make_partner("acme").partner
    disclose(make_release("old", contents={"site:1": ["post:1"]}), partner)
    make_release("never", contents={"site:1": ["post:1", "post:2"]})
    sealed = make_release("late", contents={"site:1": ["post:3"]})
    request = record(make_wish("site:1"))
    late = disclose(sealed, partner)
    planning.plan(budget=timedelta(seconds=5))
    assert ask("window", request.public_id).splitlines() == [
        "acme\tnot told yet\t1 handovers in between",
        f"\tlate\t{late.reference}\t{late.disclosed_at:%Y-%m-%dT%H:%M:%SZ}",
    ]
    assert ask("releases", request.public_id).splitlines() == [
        "old\tsealed\t1 subjects\t1 items",
        "never\tsealed\t1 subjects\t2 items",
        "late\tsealed\t1 subjects\t1 items",
    ]
    unheard = record(make_wish("site:9"))
    planning.plan(budget=timedelta(seconds=5))
    assert ask("window", unheard.public_id) == "It is told to nobody.\n"
    assert ask("releases", unheard.public_id) == "No release holds any of its content.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["holdings", "nobody"], "No partner is called nobody"),
        (["window", "01M86TEZBX710RD95NCRRQYBVJ"], "No request has the id"),
        (["releases", "x"], "No request has the id x"),
        ([], "the following arguments are required"),
    ],
)
def test_what_there_is_not_is_said(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        ask(*arguments)
