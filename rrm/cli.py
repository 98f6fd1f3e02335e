"""Command line: `rrm <stage>` runs one stage; `rrm schema`, `rrm check` and `rrm scores` serve people.

The workflow's rules call stages with `--options`; by hand, `--config` takes the same options from a config file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrm.config import Config, Runtime, json_schema, load
from rrm.errors import RRMError
from rrm.pipeline import STAGES, stage_options


def _pair(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {text!r}")
    return name, Path(path)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"expected JSON, got {text[:60]!r} ({error})") from None


def _add_stage(commands: Any, name: str) -> None:
    stage = STAGES[name]
    inputs = ", ".join(stage.inputs) or "see the documentation"
    parser = commands.add_parser(name, help=stage.help, description=f"{stage.help}. Inputs: {inputs}.")
    parser.add_argument(
        "--in", dest="inputs", metavar="NAME=PATH", type=_pair, action="append", default=[], help="an input file"
    )
    parser.add_argument("--out", required=True, type=Path, help="the file to write")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, nargs="+", help="config file(s), later ones over earlier ones")
    source.add_argument("--options", type=_json, help="the stage's options as JSON (what the workflow passes)")
    for wildcard in stage.wildcards:
        parser.add_argument(f"--{wildcard}", type=int if wildcard == "seed" else str, help=f"with --config: {wildcard}")
    parser.add_argument("--runtime", type=_json, help="device, workers, crf_workers, log_seconds as JSON")
    parser.add_argument(
        "--threads", type=int, help="threads of numeric libraries, of all processes together (default: all cores)"
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="rrm", description="Weakly supervised semantic segmentation with reliable region mining."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in STAGES:
        _add_stage(commands, name)
    schema = commands.add_parser("schema", help="print the JSON schema of the configuration")
    schema.set_defaults(stage=None)
    check = commands.add_parser("check", help="check config file(s) and print the resolved configuration as JSON")
    check.add_argument("config", type=Path, nargs="+", help="config file(s), later ones over earlier ones")
    scores = commands.add_parser("scores", help="per-class IoU of a store of confusion matrices")
    scores.add_argument("confusion", type=Path, help="a confusion_<split>.h5")
    submission = commands.add_parser("check-submission", help="check an archive for the VOC evaluation server")
    submission.add_argument("archive", type=Path, help="a submission.tar.gz, made here or elsewhere")
    submission.add_argument("--photos", type=Path, required=True, help="the photos.h5 that holds its photos' list")
    return parser


def _call_stage(arguments: argparse.Namespace) -> None:
    stage = STAGES[arguments.command]
    config: Config | None = load(*arguments.config) if arguments.config else None
    options = arguments.options
    if config is not None:
        given = {w: getattr(arguments, w) for w in stage.wildcards if getattr(arguments, w) is not None}
        options = stage_options(config, arguments.command, **given)
    runtime = Runtime.model_validate(arguments.runtime or (config.runtime if config else Runtime()))
    call = (stage.module, dict(arguments.inputs), arguments.out, options, runtime.model_dump())
    if os.environ.get("WORLD_SIZE", "1") == "1":
        _run(arguments.threads, *call)
        return
    if not stage.trains:
        raise RRMError("processes: expected one, for this stage does not train, got torchrun's variables: run it alone")
    from rrm.distributed import joined, processes_here
    from rrm.training import pick_device

    with joined(pick_device(runtime.device)):
        _run(max(1, (arguments.threads or 0) // processes_here()) if arguments.threads else None, *call)


def _run(threads: int | None, stage: str, *call: Any) -> None:
    from rrm.parallel import prepare_process
    from rrm.stages.call import Call

    prepare_process(threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    importlib.import_module(f"rrm.stages.{stage}").run(Call(stage, *call))


def _print_scores(path: Path) -> None:
    from rrm.store import Store
    from rrm.tables import per_class_table

    print(per_class_table(Store(path, "confusion")).to_string())


def _check_submission(archive: Path, photos: Path) -> None:
    from rrm.stages.submission import original_sizes
    from rrm.store import Store
    from rrm.submission import check_archive

    store = Store(photos, "photos")
    sizes = original_sizes(store)
    check_archive(archive, list(sizes), sizes, len(store.attrs["classes"]))
    print(f"{archive}: {len(sizes)} masks, as the server wants them")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; give the exit code.

    Args:
        argv: arguments without the program's name; None takes the process's.

    Returns:
        0: done; 1: bad input, one message on standard error; 2: bad usage; 130: interrupted; 143: stopped by SIGTERM
        with the state saved.
    """
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.command in STAGES:
            _call_stage(arguments)
        elif arguments.command == "schema":
            print(json.dumps(json_schema(), indent=2, sort_keys=True))
        elif arguments.command == "check":
            print(json.dumps(load(*arguments.config).model_dump(mode="json"), indent=2))
        elif arguments.command == "check-submission":
            _check_submission(arguments.archive, arguments.photos)
        else:
            _print_scores(arguments.confusion)
    except KeyboardInterrupt:
        _report(f"rrm {arguments.command}: interrupted; the same command goes on from the last checkpoint")
        return 130
    except (RRMError, OSError) as error:
        _report(f"rrm {arguments.command}: {error}")
        return 1
    return 0


def _report(message: str) -> None:
    """Print what went wrong, once where several processes meet the same fault."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from rrm.distributed import first_to_fail

        if not first_to_fail():
            return
    print(message, file=sys.stderr)
