"""``manage.py verify_answers``: are the answers that partners signed still what they signed?"""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from removal import signed_answers


class Command(BaseCommand):
    help = (
        "Verify every signed answer again, as of the moment when it came, and hold what is kept of its lines against "
        "it. Prints a line for each that is not as it was, and exits with 1 if there is any."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--partner", default="", metavar="SLUG", help="only those of this partner")

    def handle(self, *, partner: str, **_: Any) -> None:
        good = erased = bad = 0
        try:
            for checked in signed_answers.check_again(slug=partner):
                erased += checked.is_erased
                good += not checked.is_erased and not checked.fault
                if checked.fault:
                    bad += 1
                    answer = checked.answer
                    self.stdout.write(f"{answer} of {answer.partner} ({answer.message_id}): {checked.fault}")
        except signed_answers.UnknownPartner as error:
            raise CommandError(f"No partner is called {error}. `manage.py partner list` lists them.") from error
        self.stdout.write(f"{good} verified, {erased} whose words were erased, {bad} not as they were")
        if bad:
            raise CommandError(f"{bad} signed answers are not as they were.", returncode=1)
