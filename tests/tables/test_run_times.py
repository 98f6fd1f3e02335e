"""Run times: of a job that was done in several ways, those of the last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rrm.stages.run_times import last_done

WHOLE = ["one_step/predict_val.json"]
SHARDS = {
    number: [f"one_step/predict_val.shards/{key}/{part}of{number}.json" for part in range(1, number + 1)]
    for key, number in (("0123", 2), ("0123", 3), ("abcd", 4))
}
MERGE = ["one_step/predict_val.shards/merge.json"]
OTHERS = ["classifier.json", "step_two/merge.json"]
EVERY = [*WHOLE, *SHARDS[2], *SHARDS[3], *SHARDS[4], *MERGE, *OTHERS]


@pytest.mark.parametrize(
    ("last", "expected"), [(WHOLE, WHOLE), *(([*SHARDS[n], *MERGE],) * 2 for n in SHARDS)], ids=["whole", "2", "3", "4"]
)
def test_what_was_done_before_is_left_out(last: list[str], expected: list[str], tmp_path: Path) -> None:
    for number, name in enumerate([*EVERY, *last]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("s\n1\n")
        os.utime(path, (number, number))
    left = {path.relative_to(tmp_path).as_posix() for path in last_done(sorted(tmp_path.rglob("*.json")))}
    assert left == {*expected, *OTHERS}
