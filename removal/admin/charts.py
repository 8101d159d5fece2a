"""Charts as SVG, made here: no script, nothing from elsewhere, and they print. Colours are the stylesheet's."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

WIDTH, HEIGHT = 720, 180
LEFT, TOP, BOTTOM = 52, 8, 22
MOST_LABELS = 8


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour: a value for each label. ``tone`` is ``in`` or ``out``."""

    name: str
    tone: str
    values: Sequence[int]


def bars(*, title: str, labels: Sequence[str], series: Sequence[Series]) -> SafeString:
    """Draw groups of bars side by side, a group for each label; every bar says its value when pointed at."""
    top = _round_up(max((max(one.values, default=0) for one in series), default=0))
    group = (WIDTH - LEFT) / max(len(labels), 1)
    bar = group * 0.8 / max(len(series), 1)
    scale = (HEIGHT - TOP - BOTTOM) / top
    floor = HEIGHT - BOTTOM
    drawn = [
        (one.tone, LEFT + index * group + group * 0.1 + place * bar, value, f"{labels[index]}: {value:,} {one.name}")
        for place, one in enumerate(series)
        for index, value in enumerate(one.values)
    ]
    every = -(-len(labels) // MOST_LABELS)
    return format_html(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" preserveAspectRatio="xMidYMid meet">'
        "{}{}{}</svg>",
        WIDTH,
        HEIGHT,
        title,
        format_html_join(
            "",
            '<line class="rule" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/><text class="scale" x="{3}" y="{4}">{5}</text>',
            (
                (LEFT, WIDTH, _px(floor - part * scale), LEFT - 6, _px(floor - part * scale + 4), f"{part:,.0f}")
                for part in (0, top / 2, top)
            ),
        ),
        format_html_join(
            "",
            '<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>',
            (
                (tone, _px(x), _px(floor - value * scale), _px(bar), _px(value * scale), said)
                for tone, x, value, said in drawn
            ),
        ),
        format_html_join(
            "",
            '<text class="label" x="{}" y="{}">{}</text>',
            (
                (_px(LEFT + (index + 0.5) * group), HEIGHT - 6, label)
                for index, label in enumerate(labels)
                if index % every == 0
            ),
        ),
    )


def _round_up(value: int) -> int:
    """Choose where the scale ends: 2, 4, 6 … 20, 40 … so that its half is a whole number too."""
    step = 2
    while step * 10 < value:
        step *= 10
    return max(-(-value // step) * step, 2)


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
