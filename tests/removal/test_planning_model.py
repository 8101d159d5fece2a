"""Random histories, told by the planner and by a model of it: what the design says (§6, §9), in plain Python."""

import json
import random
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import timedelta
from itertools import count, product

import pytest
from django.utils import timezone

from removal import delivery, intake, large, ledger, payload, planning, recall
from removal.models import Disclosure, Notice, RemovalRequest, RequestTarget, Stream
from tests.factories import make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)

SUBJECTS = [f"site:{n}" for n in range(4)]
ITEMS = [f"post:{n}" for n in range(4)]
USAGES = [("all",), ("train-ai",), ("search",), ("train-ai", "search")]

Contents = dict[int, set[tuple[str, str]]]  # of each release, or request: subjects, each with one of its items
Told = tuple[int, list[int], int]  # a notice's request, its disclosures, and how many distinct items they hold of it


class Facts:
    """What is recorded at this moment, and what has to be told of it."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.disclosures = Disclosure.objects.in_bulk()
        self.requests = RemovalRequest.objects.filter(withdrawn_at=None, repeats=None).in_bulk()
        self.targets: Contents = defaultdict(set)
        for request_id, subject, items in RequestTarget.objects.values_list("request_id", "subject__key", "items"):
            self.targets[request_id].update((subject, item) for item in items or ITEMS)

    def items_met(self, request: RemovalRequest, release_id: int) -> set[tuple[str, str]]:
        """Find the items of a release that a request is about."""
        if request.kind == "offboarding":
            return self.contents[release_id]
        if request.release_ids is not None and release_id not in request.release_ids:
            return set()
        return self.contents[release_id] & self.targets[request.pk]

    def is_due(self, request: RemovalRequest, disclosure: Disclosure) -> bool:
        if request.kind == "reinstatement":
            return False
        if request.kind == "offboarding":
            return request.partner_id == disclosure.partner_id
        if request.ended_at is not None and disclosure.disclosed_at > request.ended_at:
            return False
        is_for_all = "all" in request.usages or "all" in disclosure.usages
        is_licensed = is_for_all or not set(request.usages).isdisjoint(disclosure.usages)
        return is_licensed and bool(self.items_met(request, disclosure.release_id))

    def due_pairs(self) -> set[tuple[int, int]]:
        pairs = product(self.requests.values(), self.disclosures.values())
        return {(request.pk, disclosure.pk) for request, disclosure in pairs if self.is_due(request, disclosure)}

    def count_items(self, request: RemovalRequest, disclosures: list[int]) -> int:
        """Count distinct items. An offboarding is about whole releases: their counts are added up."""
        release_ids = {self.disclosures[disclosure_id].release_id for disclosure_id in disclosures}
        met = [self.items_met(request, release_id) for release_id in release_ids]
        return sum(map(len, met)) if request.kind == "offboarding" else len(set().union(*met))


class Model:
    """The planner as the design describes it."""

    def __init__(self, contents: Contents, partner_ids: Iterable[int]) -> None:
        self.contents = contents
        self.planned_requests: set[int] = set()
        self.planned_disclosures: set[int] = set()
        self.matching: dict[int, set[int]] = {}  # large requests, and the disclosures planned before their round
        self.streams: dict[int, list[Told]] = {partner_id: [] for partner_id in partner_ids}

    def plan_round(self, *, limit: int = 1000) -> None:
        """Match each pair in the round of its later member."""
        facts = Facts(self.contents)
        new_requests = self._unplanned(facts, are_large=False)[:limit]
        new_disclosures = sorted(facts.disclosures.keys() - self.planned_disclosures)[:limit]
        self.planned_requests.update(new_requests)
        self.planned_disclosures.update(new_disclosures)
        pairs = {*product(new_requests, self.planned_disclosures), *product(self.planned_requests, new_disclosures)}
        self._tell(facts, pairs, new_requests)

    def start_large(self) -> bool:
        """Give the next large request its round; disclosures planned later meet it in rounds of their own."""
        unplanned = self._unplanned(Facts(self.contents), are_large=True)
        if unplanned:
            self.planned_requests.add(unplanned[0])
            self.matching[unplanned[0]] = set(self.planned_disclosures)
        return bool(unplanned)

    def finish_large(self) -> None:
        """Plan what is new, and then one large request after the other."""
        self.plan_round()
        while self.matching or self.start_large():
            request_id = min(self.matching)
            self._tell(Facts(self.contents), set(product([request_id], self.matching.pop(request_id))))

    def _unplanned(self, facts: Facts, *, are_large: bool) -> list[int]:
        unplanned = sorted(facts.requests.keys() - self.planned_requests)
        return [each for each in unplanned if (facts.requests[each].target_count > planning.LARGE) is are_large]

    def _tell(self, facts: Facts, pairs: set[tuple[int, int]], new_requests: Collection[int] = ()) -> None:
        """Add a notice for each partner and request, in order of request."""
        found: dict[tuple[int, int], list[int]] = {}
        for request_id, disclosure_id in sorted(pairs & facts.due_pairs()):
            found.setdefault((facts.disclosures[disclosure_id].partner_id, request_id), []).append(disclosure_id)
        # A reinstatement is told to all who were told of what it ended, and again behind each later notice of that.
        told = {(partner_id, request_id) for partner_id, stream in self.streams.items() for request_id, _, _ in stream}
        ended = {request.pk: request.ended_by_id for request in facts.requests.values() if request.ended_by_id}
        reinstated: dict[tuple[int, int], list[int]] = {}
        for partner_id, request_id in found.keys() | told:
            ended_by = ended.get(request_id)
            is_again = (partner_id, request_id) in found and ended_by in self.planned_requests
            if ended_by and (is_again or ended_by in new_requests):
                reinstated[partner_id, ended_by] = []
        for (partner_id, request_id), disclosures in sorted((found | reinstated).items()):
            item_count = facts.count_items(facts.requests[request_id], disclosures)
            self.streams[partner_id].append((request_id, disclosures, item_count))


class History:
    """What happens in the product; where something is planned, the model plans it too."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.numbers = count(1)
        self.began_at = timezone.now()
        self.partners = [make_partner().partner for _ in range(3)]
        lists = {subject: [self.some(ITEMS), self.some(ITEMS)] for subject in SUBJECTS}
        self.releases = []
        self.contents: Contents = {}
        for _ in range(chance.randint(2, 6)):
            entries = {subject: chance.choice(lists[subject]) for subject in self.some(SUBJECTS)}
            release = make_release(contents=entries)
            self.releases.append(release.name)
            self.contents[release.pk] = {(subject, item) for subject, items in entries.items() for item in items}
        self.model = Model(self.contents, [partner.pk for partner in self.partners])

    def some(self, choices: list[str]) -> list[str]:
        return self.chance.sample(choices, k=self.chance.randint(1, len(choices)))

    def go_on(self) -> None:
        steps = [self.hand_over] * 6 + [self.ask] * 6 + [self.plan] * 3 + [self.call_back] * 2
        steps += [self.withdraw, self.pack, self.match_large, self.finish_large]
        self.chance.choice(steps)()

    def hand_over(self) -> None:
        now = timezone.now()
        ledger.record_disclosure(
            actor="test",
            release=self.chance.choice(self.releases),
            partner=self.chance.choice(self.partners).slug,
            reference=f"shipment-{next(self.numbers)}",
            disclosed_at=self.chance.choice([self.began_at, now, now + timedelta(minutes=1)]),
            usages=self.chance.choice(USAGES),
            now=now,
        )

    def ask(self) -> None:
        subject, usages = self.chance.choice(SUBJECTS), self.chance.choice(USAGES)
        wishes = [
            make_wish(subject, usages=usages),
            make_wish(subject, kind="deletion", usages=usages),
            make_wish(subject, kind="deletion", usages=usages, items=tuple(self.some(ITEMS))),
            make_wish(subject, kind="reinstatement"),
            make_wish("", kind="offboarding", partner=self.chance.choice(self.partners).slug),
        ]
        [wish] = self.chance.choices(wishes, weights=[4, 1, 1, 2, 1])
        record(wish)

    def call_back(self) -> None:
        said = recall.Recall(f"recall-{next(self.numbers)}", releases=tuple(self.some(self.releases)))
        lines = []
        for line, subject in enumerate(self.some(SUBJECTS), start=1):
            lines.append(recall.Line(line, subject, self.chance.choice([None, None, self.some(ITEMS)])))
        with suppress(intake.InvalidWish):  # where these releases hold nothing of it
            recall.record_recall(source="blogs", actor="test", recall=said, lines=lines, now=timezone.now())

    def withdraw(self) -> None:
        requests = RemovalRequest.objects.order_by("id")
        if requests:
            with suppress(intake.CannotWithdraw):  # where it has ended
                public_id = self.chance.choice(requests).public_id
                intake.withdraw_request(source="blogs", actor="test", public_id=public_id)

    def pack(self) -> None:
        delivery.claim(partner_id=self.chance.choice(self.partners).pk)

    def plan(self) -> None:
        limit = self.chance.choice([1, 2, 3, 1000])
        self.model.plan_round(limit=limit)
        planning.plan_round(limit=limit)
        self.compare()

    def match_large(self) -> None:
        if large._match_piece() is None:
            assert large._start() is self.model.start_large()

    def finish_large(self) -> None:
        self.model.finish_large()
        large.advance(budget=timedelta(seconds=30))
        self.compare()

    def compare(self) -> None:
        streams: dict[int, list[Told]] = {partner_id: [] for partner_id in self.model.streams}
        for notice in Notice.objects.order_by("stream_id", "sequence"):
            streams[notice.stream_id].append((notice.request_id, notice.disclosures, notice.item_count))
            assert notice.sequence == len(streams[notice.stream_id])
        assert streams == self.model.streams
        heads = dict(Stream.objects.values_list("partner_id", "head"))
        assert heads == {partner_id: len(stream) for partner_id, stream in streams.items()}


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_partners_are_told_what_the_design_says(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(planning, "LARGE", chance.choice([1, 2, 10_000]))
    monkeypatch.setattr(large, "PIECE", chance.randint(1, 3))
    history = History(chance)
    for _ in range(chance.randint(25, 45)):
        history.go_on()
    history.finish_large()

    told = []
    for partner_id, stream in history.model.streams.items():
        told += [(request_id, disclosure_id) for request_id, given, _ in stream for disclosure_id in given]
        notices = payload.read_notices(stream_id=partner_id, epoch=1, first=1, last=len(stream))
        encoded = payload.read_encoded(stream_id=partner_id, epoch=1, first=1, last=len(stream))
        assert [json.loads(notice) for notice in encoded] == notices
    assert len(told) == len(set(told))
    assert Facts(history.contents).due_pairs() <= set(told)
    assert planning.reconcile() == planning.Round(0, 0, 0, ())
