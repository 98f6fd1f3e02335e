"""`python -m tests.kills --kills 200 --seed 7`: a long session, with a line at the end that says how it went."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.kills.session import Session


def main() -> int:
    """Run a session; the exit code says whether all kills passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument("--first", type=int, default=0, help="number of the first kill, to repeat a round")
    parser.add_argument("--folder", type=Path, help="a new folder that is kept (default: a temporary one)")
    parser.add_argument("--patience", type=float, default=900, help="seconds until a command counts as hung")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rrm-kills-") as made:
        session = Session(asked.folder or Path(made), asked.seed, asked.patience, lambda line: print(line, flush=True))
        session.prepare()
        passed = failed = 0
        for outcomes in session.rounds(asked.kills, asked.first):
            wrong = [outcome for outcome in outcomes if outcome.faults]
            passed, failed = passed + len(outcomes) - len(wrong), failed + len(wrong)
            for outcome in wrong:
                first, count = outcomes[0].kill.number, outcome.kill.number - outcomes[0].kill.number + 1
                print(f"FAILED {outcome.kill}: {'; '.join(outcome.faults)}")
                print(f"  again: python -m tests.kills --seed {asked.seed} --first {first} --kills {count}")
    print(f"{passed} passed, {failed} failed, seed {asked.seed}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
