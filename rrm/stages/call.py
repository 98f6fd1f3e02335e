"""What a stage is called with: input files, output file, its part of the configuration, and how to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rrm.errors import RRMError
from rrm.provenance import code_hash, file_digest


@dataclass(frozen=True)
class Call:
    """One call of a stage.

    Attributes:
        stage: name of the stage's module, such as `"one_step"`.
        inputs: input files by name.
        output: the one file that the stage writes.
        options: all that the result depends on beside inputs and code (`rrm.pipeline.stage_options`).
        runtime: `device`, `workers`, `crf_workers` and `log_seconds` (`rrm.config.Runtime`); `shard` where the stage
            is to work on a part of its photos (`rrm.shards.own_share`).
        planned_code: content hash of the stage's code where it is known; None: it is computed (0.4 s).
    """

    stage: str
    inputs: Mapping[str, Path]
    output: Path
    options: Mapping[str, Any]
    runtime: Mapping[str, Any] = field(default_factory=dict)
    planned_code: str | None = None

    def input(self, name: str) -> Path:
        """Path of an input.

        Raises:
            RRMError: the input was not given or does not exist.
        """
        if name not in self.inputs:
            raise RRMError(f"{self.stage}: expected an input {name!r}, got {sorted(self.inputs)}: add --in {name}=PATH")
        if not self.inputs[name].is_file():
            raise RRMError(
                f"{self.stage}: input {name}: expected a file, got {self.inputs[name]}: run the stage that makes it"
            )
        return self.inputs[name]

    @property
    def code(self) -> str:
        """Content hash of the stage's code."""
        return self.planned_code or code_hash(self.stage)

    def identity(self) -> dict[str, Any]:
        """Everything that determines the output: options, code and content of the inputs."""
        digests = {name: file_digest(self.input(name)) for name in self.inputs}
        return {"stage": self.stage, "options": dict(self.options), "code": self.code, "inputs": digests}
