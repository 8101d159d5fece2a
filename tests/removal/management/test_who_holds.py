"""``who_holds`` answers for any moment."""

from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from tests.factories import disclose, make_partner, make_release

pytestmark = pytest.mark.django_db(transaction=True)


def ask(*arguments: str) -> str:
    out = StringIO()
    call_command("who_holds", *arguments, stdout=out)
    return out.getvalue()


def test_a_line_for_each_handover() -> None:
    disclosure = disclose(make_release("r", contents={"site:1": ["post:1", "post:2"]}), make_partner("acme").partner)
    assert ask("site:1") == f"acme\tr\t2 items\t{disclosure.disclosed_at:%Y-%m-%dT%H:%M:%SZ}\tholds it\n"
    assert ask("site:1", "--as-of", "2024-02-29T12:00:00Z") == "Nobody was given anything of site:1.\n"


@pytest.mark.parametrize("time", ["yesterday", "2024-02-29T12:00:00"])
def test_a_time_says_its_offset(time: str) -> None:
    with pytest.raises(CommandError, match="write a time with its offset"):
        ask("site:1", "--as-of", time)
