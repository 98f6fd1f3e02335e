"""What a job writes that it took."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rrm.cli import main
from rrm.errors import RRMError
from rrm.usage import Usage


def test_a_stage_writes_what_it_took_once_it_has_succeeded(tmp_path: Path) -> None:
    took, config = tmp_path / "a" / "usage.json", ["--config", "config.yaml", "tests/tiny.yaml"]
    assert main(["figure2", "--out", str(tmp_path / "figure.png"), *config, "--usage", str(took)]) == 1
    assert not took.exists()
    begin, cpu = time.monotonic(), time.process_time()
    assert main(["resolved-config", "--out", str(tmp_path / "config.yaml"), *config, "--usage", str(took)]) == 0
    usage = Usage.read(took)
    assert 0 < usage.seconds <= time.monotonic() - begin
    assert usage.cpu_seconds >= cpu
    assert usage.peak_memory > 10 << 20 and usage.peak_gpu_memory == 0


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"seconds": 1}', "{"])
def test_other_files_are_no_usage(tmp_path: Path, text: str) -> None:
    path = tmp_path / "usage.json"
    path.write_text(text)
    with pytest.raises(RRMError, match="delete the file"):
        Usage.read(path)
