"""Hashed identifiers: the guide's own example, and that no two things get one name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partners.identifiers import IdentifierKey
from partners.signing import KeyUnusable
from tests.conftest import ROOT

KEY = IdentifierKey(bytes(range(32)))
TEXTS = st.text(alphabet=st.sampled_from("ab:\nß"), min_size=1, max_size=4)


def test_the_guides_example_computes_the_same() -> None:
    guide = (ROOT / "docs/partner-guide.md").read_text()
    [example] = re.findall(r"```python\n(import base64.*?)```", guide, flags=re.DOTALL)
    said: dict[str, str] = {}
    exec(example, said)  # its own assertions hold
    assert KEY.to_text() in example
    assert said["subject"] == KEY.subject("site:123")
    assert said["item"] == KEY.item("site:123", "post:9")


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=20, unique=True))
def test_no_two_items_have_one_name(pairs: list[tuple[str, str]]) -> None:
    names = {KEY.item(subject, item) for subject, item in pairs}
    names |= {KEY.subject(subject) for subject, _ in pairs} | {KEY.request(item) for _, item in pairs}
    assert len(names) == len(pairs) + len({subject for subject, _ in pairs}) + len({item for _, item in pairs})


def test_items_of_a_subject_are_named_alike_one_by_one_and_together() -> None:
    items = [f"post:{n}" for n in range(50)]
    assert KEY.items("site:1", items) == sorted(KEY.item("site:1", item) for item in items)


def test_two_keys_name_nothing_alike() -> None:
    one, other = IdentifierKey.generate(), IdentifierKey.generate()
    assert one.subject("site:1") != other.subject("site:1")
    assert IdentifierKey.from_text(one.to_text()) == one
    assert str(one.raw) not in repr(one)


def test_a_signing_secret_is_no_identifier_key() -> None:
    with pytest.raises(KeyUnusable):
        IdentifierKey.from_text("whsec_" + "A" * 43 + "=")
