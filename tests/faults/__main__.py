"""``python -m tests.faults --minutes 5 --seed 1``: break everything for five minutes, heal it, and compare.

Prints what it does on stderr and a summary as JSON on stdout. Exits with 1 if anything that was promised did not hold.
"""

import argparse
import secrets
import sys

from tests.faults.mix import Options, as_json, run, say


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=None, help="what was printed by a run that is to be repeated")
    parser.add_argument("--only", default="", metavar="FAULT,…", help="draw only these faults")
    parser.add_argument("--no-fencing", action="store_true", help="with workers whose fence is gone: must find it out")
    parser.add_argument("--keep", action="store_true", help="keep the logs of a run that found nothing, too")
    given = parser.parse_args()
    options = Options(
        seed=secrets.randbelow(1 << 31) if given.seed is None else given.seed,
        seconds=given.minutes * 60,
        fencing=not given.no_fencing,
        only=[name for name in given.only.split(",") if name],
        keep=given.keep,
    )
    summary = run(options)
    print(as_json(summary))  # noqa: T201  # what it is for
    found = summary.violations + summary.differences
    for line in found[:50]:
        say(line)
    say(f"seed {options.seed}: {len(summary.violations)} violations, {len(summary.differences)} differences")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
