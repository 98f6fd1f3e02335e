"""What a run finds in its folder: locks and who left them, times in the future."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rrm.alive import name_of
from rrm.errors import RRMError
from tests.workflow.project import REPOSITORY

sys.path.append(str(REPOSITORY / "workflow"))

from folder import lock_found, note_driver, refuse_read_only, settle_times


def _lock(folder: Path) -> None:
    (folder / ".snakemake" / "locks").mkdir(parents=True)
    (folder / ".snakemake" / "locks" / "0.input.lock").touch()


def test_a_lock_is_explained_by_who_holds_it(tmp_path: Path) -> None:
    assert lock_found(tmp_path) == ""
    _lock(tmp_path)
    assert "if no snakemake works here on any machine: type `snakemake --unlock`" in lock_found(tmp_path)
    note_driver(tmp_path)
    assert lock_found(tmp_path).endswith(f"process {os.getpid()} works here: wait until it has ended")
    driver = tmp_path / ".snakemake" / "driver"
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        driver.write_text(name_of(ended.pid))
    assert f"process {ended.pid} was killed and left its lock: type `snakemake --unlock`" in lock_found(tmp_path)
    driver.write_text(name_of() + "9")  # another process has its number now
    assert f"process {os.getpid()} was killed and left its lock" in lock_found(tmp_path)
    for unknown in ("0123abcd-1-2", ""):
        driver.write_text(unknown)
        assert "on any machine" in lock_found(tmp_path)


def test_times_in_the_future_become_past_ones_in_the_same_order(tmp_path: Path) -> None:
    now = time.time()
    times = {"a": now - 100, "b": now + 1000, "c": now - 50, "d": now + 900, "e": now + 2000}
    for name, moment in times.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (moment, moment))
    assert settle_times([tmp_path / name for name in [*times, "absent"]]) == 3
    got = {name: (tmp_path / name).stat().st_mtime_ns for name in times}
    assert sorted(got, key=lambda name: got[name]) == ["a", "c", "d", "b", "e"]
    assert len(set(got.values())) == 5 and max(got.values()) <= time.time_ns()
    assert settle_times([tmp_path / name for name in times]) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(RRMError, match="expected a folder that may be written to"):
        refuse_read_only(tmp_path)
    tmp_path.chmod(0o755)
    refuse_read_only(tmp_path)
    refuse_read_only(tmp_path / "absent")
