"""`python -m tests.kills --kills 200 --seed 7`: a long session, with a line at the end that says how it went.

With `--folder` it can be done in several calls, one after another or side by side: each goes on from the kill `--first`
of the same seed, and all compare with the undisturbed run of the first call.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.kills.session import Outcome, Session


def arguments() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument("--first", type=int, default=0, help="number of the first kill")
    parser.add_argument("--folder", type=Path, help="a folder that is kept (default: a temporary one)")
    parser.add_argument("--patience", type=float, default=900, help="seconds until a command counts as hung")
    parser.add_argument("targets", nargs="*", default=["all"], help="what Snakemake is asked for (default: all)")
    return parser


def main() -> int:
    """Run a session; the exit code says whether all kills passed."""
    asked = arguments().parse_args()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="rrm-kills-") as made:
        folder = (asked.folder or Path(made)).resolve()
        session = Session(folder, asked.seed, asked.targets, asked.patience, lambda line: print(line, flush=True))
        session.prepare()
        for round_ in session.rounds(asked.kills, asked.first):
            _tell_round(round_, asked.seed, len(session.expected))
            outcomes += round_
    failed = sum(bool(outcome.faults) for outcome in outcomes)
    last = asked.first + len(outcomes) - 1
    kinds = Counter(f"{outcome.kill.kind.name} to a {outcome.kill.victim}" for outcome in outcomes)
    print(", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    print(f"{len(outcomes) - failed} passed, {failed} failed, seed {asked.seed}, kills {asked.first} to {last}")
    return int(failed > 0)


def _tell_round(outcomes: Sequence[Outcome], seed: int, files: int) -> None:
    first = outcomes[0].kill.number
    wrong = [outcome for outcome in outcomes if outcome.faults]
    for outcome in wrong:
        print(f"FAILED {outcome.kill}: {'; '.join(outcome.faults)}")
    if wrong:
        print(f"  again: python -m tests.kills --seed {seed} --first {first} --kills {len(outcomes)}", flush=True)
    else:
        print(f"round of {len(outcomes)} kills from {first} on: all {files} files identical", flush=True)


if __name__ == "__main__":
    sys.exit(main())
