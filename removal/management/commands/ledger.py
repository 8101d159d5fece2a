"""``manage.py ledger holdings|window|releases``: what the ledger answers beside ``who_holds``."""

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from removal import holdings
from removal.models import RemovalRequest


class Command(BaseCommand):
    help = (
        "Say what a partner holds and owes, what slipped through before a request took effect, or where its content is."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        questions = parser.add_subparsers(dest="question", required=True, metavar="holdings|window|releases")
        asked = questions.add_parser(
            "holdings", help="what a partner was given in all, and what it still has to answer"
        )
        asked.add_argument("partner", metavar="PARTNER", help="its slug")
        for question, text in (
            (
                "window",
                "what each partner was given of a request's content after it was received and before it was told",
            ),
            ("releases", "every release, handed over or not, that holds content a request is about"),
        ):
            questions.add_parser(question, help=text).add_argument("public_id", metavar="REQUEST", help="its id")

    def handle(self, *, question: str, **options: Any) -> None:
        if question == "holdings":
            self._holdings(options["partner"])
            return
        request = RemovalRequest.objects.filter(public_id=options["public_id"]).first()
        if request is None:
            raise CommandError(f"No request has the id {options['public_id']}. The admin finds it by its subject.")
        named = {"source": request.source, "public_id": request.public_id}
        if question == "window":
            self._window(holdings.window_of(**named))
        else:
            self._releases(holdings.releases_with(**named))

    def _holdings(self, partner: str) -> None:
        try:
            held = holdings.holdings_of(partner=partner, now=timezone.now())
        except holdings.UnknownPartner as error:
            raise CommandError(f"No partner is called {error}. `manage.py partner list` lists them.") from error
        for one in held.releases:
            self.stdout.write(
                f"{one.release}\t{one.state}\t{one.subjects} subjects\t{one.items} items\t{one.handovers} handovers, "
                f"first {_as_time(one.first_disclosed_at)}"
            )
        self.stdout.write(
            f"{partner} was given {held.items} items in {len(held.releases)} releases, and has "
            f"{held.open_notices} notices to answer, {held.overdue_notices} of them overdue."
        )
        if held.oldest:
            oldest = held.oldest
            self.stdout.write(
                f"The first that is due: number {oldest.sequence}, request {oldest.request}, "
                f"by {_as_time(oldest.respond_by)}."
            )

    def _window(self, windows: list[holdings.Window]) -> None:
        for window in windows:
            told = f"told {_as_time(window.told_at)}" if window.told_at else "not told yet"
            self.stdout.write(f"{window.partner}\t{told}\t{len(window.handovers)} handovers in between")
            for handover in window.handovers:
                self.stdout.write(f"\t{handover.release}\t{handover.reference}\t{_as_time(handover.disclosed_at)}")
        if not windows:
            self.stdout.write("It is told to nobody.")

    def _releases(self, releases: list[holdings.ReleaseWith]) -> None:
        for one in releases:
            counts = "" if one.subjects is None else f"\t{one.subjects} subjects\t{one.items} items"
            self.stdout.write(f"{one.release}\t{one.state}{counts}")
        if any(one.subjects is None for one in releases):
            self.stdout.write("Too many subjects to count: releases that it does not name were looked for by a sample.")
        if not releases:
            self.stdout.write("No release holds any of its content.")


def _as_time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
