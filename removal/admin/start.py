"""The start page: who has not been told, who has not answered, what is late, and why. Each figure leads to its list."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.timesince import timesince

from partners.admin import badge, link
from partners.models import Partner
from removal import desk
from removal.admin import charts
from removal.admin.closings import waiting
from removal.admin.filters import CAUSES
from removal.admin.words import state_badge
from removal.desk import count, say_count
from removal.health import Health, health_of_all
from removal.models import Alarm, Delivery, Extension, Incident, Notice, RemovalRequest, Waiver

MOST_PARTNERS = 50
WHY_NOT_TOLD = {
    "held": "held: paused or in onboarding",
    "suspended": "410 gone",
    "unreachable": "unreachable",
    "backlog": "backlog",
}


@dataclass(frozen=True)
class Figure:
    """One number and the list behind it; ``words`` stand in its place where there is nothing."""

    label: str
    number: int
    url: str
    tone: str
    words: str
    detail: str = ""

    @property
    def said(self) -> str:
        return say_count(self.number)


def context(request: HttpRequest) -> dict[str, Any]:
    """Read what this person may see of the desk, as of now."""
    now = timezone.now()
    may = request.user.has_perm
    shows_partners = may("partners.view_partner") and may("removal.view_notice")
    everyone = health_of_all(now=now) if shows_partners else []
    return {
        "figures": _figures(may, everyone, now=now),
        "columns": COLUMNS,
        "partners": _partners(everyone, now=now) if shows_partners else None,
        "days": _days(now) if may("removal.view_removalrequest") else None,
    }


def list_url(model: str, app: str = "removal", **query: Any) -> str:
    return f"{reverse(f'admin:{app}_{model}_changelist')}{'?' + urlencode(query) if query else ''}"


def _figures(may: Callable[[str], bool], everyone: Sequence[Health], *, now: datetime) -> list[Figure]:
    figures: list[Figure] = []
    if may("removal.view_removalrequest"):
        requests = RemovalRequest.objects
        figures += [
            _figure("requests overdue", requests.overdue(now=now), "removalrequest", {"late": "overdue"}, "bad",
                    "No request is overdue."),
            _figure("requests due soon", requests.due_soon(now=now), "removalrequest", {"late": "due_soon"}, "wait",
                    "No request is due soon."),
        ]  # fmt: skip
    if may("removal.view_notice"):
        notices = Notice.objects
        figures += [
            _figure("answers of partners overdue", notices.overdue(now=now), "notice", {"late": "overdue"}, "bad",
                    "No partner's answer is overdue."),
            _figure("answers of partners due soon", notices.due_soon(now=now), "notice", {"late": "due_soon"}, "wait",
                    "No partner's answer is due soon."),
            Figure("notices not sent in time", len(desk.notices_not_sent(now=now)),
                   list_url("notice", late="unsent"), "bad", "Every notice was sent in time.", "by our own date"),
        ]  # fmt: skip
    if may("partners.view_partner") and may("removal.view_notice"):
        reasons = list(desk.partners_not_told(now=now).values())
        figures += [
            Figure("partners silent", sum(health.is_silent for health in everyone),
                   list_url("partner", "partners", standing="silent"), "bad",
                   "No partner is silent: each has said in time that it has what it was sent.",
                   "delivered, no receipt by its date"),
            Figure("partners not told", len(reasons), list_url("partner", "partners", standing="not_told"), "bad",
                   "Every partner has been told everything.", _tally(reasons, WHY_NOT_TOLD)),
        ]  # fmt: skip
    if may("removal.view_incident"):
        kinds = list(Incident.objects.filter(closed_at=None).order_by("pk").values_list("kind", flat=True)
                     [: desk.COUNTED])  # fmt: skip
        url = list_url("incident", state="ongoing")
        detail = _tally([_cause(kind) for kind in kinds], {name: words for name, (words, _) in CAUSES.items()})
        figures.append(Figure("incidents open", len(kinds), url, "bad", "No endpoint has a fault.", detail))
    if may("removal.view_delivery"):
        aside = Delivery.objects.filter(state=Delivery.State.QUARANTINED)
        query = {"state__exact": "quarantined"}
        figures.append(_figure("messages quarantined", aside, "delivery", query, "bad", "No message is quarantined."))
    if may("removal.view_extension"):
        wishes = Extension.objects.filter(state=Extension.State.ASKED)
        figures.append(_figure("wishes for more time to decide", wishes, "extension", {"state__exact": "asked"}, "wait",
                               "No wish for more time waits for a decision."))  # fmt: skip
    if may("removal.view_waiver"):
        asked = waiting(Waiver.objects.all())
        figures.append(_figure("waivers to decide", asked, "waiver", {"waits": "yes"}, "wait",
                               "No waiver waits for a decision."))  # fmt: skip
    if may("removal.view_alarm"):
        alarms = Alarm.objects.filter(raised_at__gte=now - desk.WEEK)
        figures.append(_figure("alarms in the last 7 days", alarms, "alarm", {"when": "week"}, "bad",
                               "Nothing that was removed came back in the last 7 days."))  # fmt: skip
    return figures


def _figure(label: str, rows: Any, model: str, query: Mapping[str, str], tone: str, words: str) -> Figure:
    return Figure(label, count(rows), list_url(model, **query), tone, words)


def _cause(kind: str) -> str:
    return next((name for name, (_, kinds) in CAUSES.items() if kind in kinds), kind)


def _tally(names: Sequence[str], words: Mapping[str, str]) -> str:
    """Say how many there are of each, the most first."""
    counts = sorted({name: names.count(name) for name in set(names)}.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{number} {words.get(name, name)}" for name, number in counts[:5])


@dataclass(frozen=True)
class Cell:
    """What a partner's row says in one column, and the list that it comes from."""

    text: str | SafeString
    url: str = ""


@dataclass(frozen=True)
class Line:
    partner: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class PartnersTable:
    lines: Sequence[Line]
    more: int
    url: str


COLUMNS = ("State", "Overdue", "Silent", "Open", "Oldest unanswered", "Incidents", "Down since", "Arrived", "Median",
           "95 %", "Last reminder")  # fmt: skip


def _partners(everyone: Sequence[Health], *, now: datetime) -> PartnersTable:
    """Put the partners' health together, the worst first."""

    def badness(health: Health) -> tuple[Any, ...]:
        is_down = health.down_since is not None
        return (-health.overdue, not health.is_silent, not is_down, -health.incidents, -health.open,
                health.slug)  # fmt: skip

    shown = sorted(everyone, key=badness)[:MOST_PARTNERS]
    ids = [health.partner_id for health in shown]
    partners = Partner.objects.select_related("stream").in_bulk(ids)
    lines = [_line(health, partners[health.partner_id], now=now) for health in shown]
    return PartnersTable(lines, len(everyone) - len(shown), list_url("partner", "partners"))


def _line(health: Health, partner: Partner, *, now: datetime) -> Line:
    own: dict[str, Any] = {"stream__partner__id__exact": health.partner_id}
    page = reverse("admin:partners_partner_change", args=[health.partner_id])
    suspended = health.endpoint_state == "suspended"
    oldest = list_url("notice", q=f"{health.slug} {health.oldest_sequence}") if health.oldest_at else ""
    answers = list_url("acknowledgement", **own)
    reminded = partner.stream.reminded_at
    return Line(
        link(partner, health.slug),
        [
            Cell(state_badge("suspended", "410 gone") if suspended else state_badge(health.state), page),
            Cell(_bad(health.overdue), list_url("notice", late="overdue", **own)),
            # What is due first comes first there, so also what it has not said a word of.
            Cell(state_badge("silent") if health.is_silent else "no", list_url("notice", late="open", **own)),
            Cell(_number(health.open), list_url("notice", late="open", **own)),
            Cell(_ago(health.oldest_at, now), oldest),
            Cell(_bad(health.incidents), list_url("incident", state="ongoing", **own)),
            Cell(_ago(health.down_since, now), list_url("delivery", state__exact="waiting", **own)),
            Cell("-" if health.success_rate is None else f"{health.success_rate:.1%}", list_url("delivery", **own)),
            Cell(_length(health.half_within), answers),
            Cell(_length(health.most_within), answers),
            Cell(_ago(reminded, now)),
        ],
    )  # fmt: skip


def _number(number: int) -> str:
    return say_count(number)  # health counts as far as we do


def _bad(number: int) -> str | SafeString:
    return badge(_number(number), "bad") if number else "0"


def _ago(at: datetime | None, now: datetime) -> str:
    return timesince(at, now, depth=1) + " ago" if at else "-"


def _length(time: Any) -> str:
    """Write a length of time in the unit that suits it."""
    if time is None:
        return "-"
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if time.total_seconds() >= seconds:
            return f"{time.total_seconds() / seconds:.1f} {unit}"
    return f"{time.total_seconds():.0f} s"


def _days(now: datetime) -> dict[str, Any]:
    """Draw the requests that came and went, day by day, and list the same below with links."""
    days = desk.requests_by_day(now=now)
    if not any(day.received or day.closed for day in days):
        return {}
    chart = charts.bars(
        title=f"Requests received and closed in the last {len(days)} days",
        labels=[f"{day.day:%d %b}" for day in days],
        series=[
            charts.Series("received", "in", [day.received for day in days]),
            charts.Series("closed", "out", [day.closed for day in days]),
        ],
    )
    rows = [
        (
            day.day,
            Cell(_of_day(day.received), list_url("removalrequest", received=day.day)),
            Cell(_of_day(day.closed), list_url("removalrequest", closed=day.day)),
        )
        for day in reversed(days)
    ]
    return {"chart": chart, "rows": rows}


def _of_day(number: int) -> str:
    return f"{number:,}" + ("+" if number >= desk.COUNTED_A_DAY else "")
