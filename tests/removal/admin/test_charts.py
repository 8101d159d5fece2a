"""Charts: every value can be read, the scale fits, and nothing in them is markup."""

import xml.etree.ElementTree as ET

import pytest

from removal.admin.charts import Series, bars


def draw(*values: int, labels: tuple[str, ...] = ("Mon", "Tue"), name: str = "received") -> ET.Element:
    return ET.fromstring(bars(title="Requests", labels=labels, series=[Series(name, "in", values)]))


def test_every_bar_says_its_value() -> None:
    assert [title.text for title in draw(3, 1200).iter("title")] == ["Mon: 3 received", "Tue: 1,200 received"]


def test_heights_are_in_proportion() -> None:
    first, second = (float(bar.attrib["height"]) for bar in draw(10, 20).iter("rect"))

    assert second == 2 * first


@pytest.mark.parametrize(
    ("highest", "scale"),
    [(0, ["0", "1", "2"]), (3, ["0", "2", "4"]), (20, ["0", "10", "20"]), (21, ["0", "20", "40"]),
     (1234, ["0", "700", "1,400"])],
)  # fmt: skip
def test_the_scale_ends_at_a_round_number(highest: int, scale: list[str]) -> None:
    assert [text.text for text in draw(0, highest).iter("text") if text.attrib["class"] == "scale"] == scale


def test_many_labels_are_thinned_out() -> None:
    labels = tuple(str(day) for day in range(30))

    shown = [text.text for text in draw(*range(30), labels=labels).iter("text") if text.attrib["class"] == "label"]

    assert shown == ["0", "4", "8", "12", "16", "20", "24", "28"]


def test_nothing_is_drawn_of_nothing() -> None:
    assert list(draw(labels=()).iter("rect")) == []


def test_names_are_text_and_no_markup() -> None:
    assert [title.text for title in draw(1, 2, name="<script>").iter("title")] == ["Mon: 1 <script>", "Tue: 2 <script>"]
