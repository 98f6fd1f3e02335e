"""Started by torchrun: runs stages one after the other, as `rrm` runs one. Says what with a JSON file of calls."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from rrm.distributed import joined
from rrm.parallel import prepare_process
from rrm.stages.call import Call

RUNTIME = {"device": "cpu", "workers": 0, "crf_workers": 0, "log_seconds": 60}


def call(stage: str, inputs: dict[str, str], out: str, options: dict[str, Any]) -> None:
    """Run a stage in this process."""
    paths = {name: Path(path) for name, path in inputs.items()}
    importlib.import_module(f"rrm.stages.{stage}").run(Call(stage, paths, Path(out), options, RUNTIME))


if __name__ == "__main__":
    prepare_process(1)
    with joined("cpu"):
        for each in json.loads(Path(sys.argv[1]).read_text()):
            call(*each)
