"""Command line: `rrm <stage>` runs one stage, `rrm merge` joins its shards; the other commands serve people.

The workflow's rules call stages with `--options`; by hand, `--config` takes the same options from a config file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rrm.alive import stop_with_driver
from rrm.config import Config, Runtime, json_schema, load
from rrm.errors import RRMError, memory_fault
from rrm.pipeline import STAGES, stage_options

SHELLS = ("bash", "zsh", "fish", "tcsh")
"""Shells that `rrm completion` writes for."""


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
    if stage.sharded:
        parser.add_argument(
            "--shard", metavar="K/N", help="only part K of N of the photos; `rrm merge` joins the parts"
        )
    parser.add_argument("--runtime", type=_json, help="device, workers, crf_workers, log_seconds as JSON")
    _add_usage(parser)
    parser.add_argument("--code", help="content hash of the stage's code where it is known (what the workflow passes)")
    parser.add_argument(
        "--threads", type=int, help="threads of numeric libraries, of all processes together (default: all cores)"
    )


def _add_data(commands: Any) -> None:
    parser = commands.add_parser("data", help="assemble a published data set into one folder in VOC layout")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="DATA SET")
    voc = kinds.add_parser("voc2012", help="PASCAL VOC 2012 with the masks of SBD: train_aug, val and test")
    voc.add_argument(
        "--voc", type=Path, nargs="+", required=True, help="VOCtrainval_11-May-2012.tar, VOC2012test.tar, or VOC2012/"
    )
    voc.add_argument("--sbd", type=Path, required=True, help="benchmark.tgz, or benchmark_RELEASE/")
    voc.add_argument(
        "--subset",
        action="store_true",
        help="do not insist on the official checksums and numbers of photos; the manifest says so",
    )
    coco = kinds.add_parser("coco", help="COCO's objects: labels, masks and lists")
    coco.add_argument("--images", type=Path, required=True, help="the folder that holds train2014/ and val2014/")
    coco.add_argument(
        "--annotations", type=Path, nargs="+", required=True, help="instances_train2014.json, instances_val2014.json"
    )
    coco.add_argument(
        "--background-images", action="store_true", help="keep photos without objects in the list train too"
    )
    for kind in (voc, coco):
        kind.add_argument("--out", type=Path, required=True, help="the folder to make, new or empty")


def _add_init(commands: Any) -> None:
    init = commands.add_parser(
        "init",
        help="start a project with your own photos and image-level labels",
        description="Check photos and labels, divide them, write a folder to train in. All faults are named at once.",
    )
    init.add_argument("folder", type=Path, help="the project's folder, new or empty")
    init.add_argument("--images", nargs="+", required=True, metavar="INPUT", help="photos, folders, patterns")
    init.add_argument(
        "--labels",
        type=Path,
        help="CSV, folder of VOC's XML, COCO's JSON, export of Label Studio or CVAT (default: a folder for each class)",
    )
    init.add_argument("--classes", type=Path, help="text file of the classes, one a line; other labels are faults")
    init.add_argument(
        "--background", action="store_true", help="photos listed without a label show none of the classes"
    )
    init.add_argument("--skip-faulty", action="store_true", help="leave out what is faulty, and list it")
    init.add_argument("--val", type=float, default=0.2, help="share of photos that is held out (default 0.2)")
    init.add_argument("--seed", type=int, default=0, help="of the division and of the training (default 0)")
    init.add_argument(
        "--weights",
        type=Path,
        help="torchvision's mobilenet_v2 for ImageNet (default: a small network from random weights)",
    )
    init.add_argument("--steps", type=int, default=100, help="of one-step training (default 100)")


def _add_own_masks(commands: Any) -> None:
    masks = commands.add_parser("own-masks", help="masks of a project's photos, and a list (what the workflow calls)")
    masks.add_argument("model", type=Path, help="weights.pth of a stage that trains")
    masks.add_argument(
        "--out", required=True, type=Path, help="the list, a CSV file; masks lie in the folder beside it"
    )
    masks.add_argument("--options", required=True, type=_json, help="sections segment and dataset as JSON")
    masks.add_argument("--runtime", type=_json, default={}, help="section runtime as JSON")
    masks.add_argument("--threads", type=int, help="threads of numeric libraries (default: all cores)")


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan", help="what a configuration takes: steps, FLOPs, and time, memory and disk by measured rates"
    )
    plan.add_argument(
        "--config", type=Path, nargs="+", required=True, help="config file(s), later ones over earlier ones"
    )
    plan.add_argument("--measure", action="store_true", help="measure rates on this machine: each stage runs shortly")
    plan.add_argument("--rates", type=Path, metavar="FILE", help="rates to read, or with --measure to write")
    plan.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to measure")
    plan.add_argument("--threads", type=int, default=1, help="threads of each job that is measured")
    plan.add_argument("--parallel", type=int, default=1, help="jobs that run at a time, for the total time")
    plan.add_argument("--out", type=Path, help="the table as a CSV file")
    _add_json(plan)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for a script")


def _add_usage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--usage", type=Path, metavar="FILE", help="write time and memory that the job took, as JSON")


def _add_merge(commands: Any) -> None:
    merge = commands.add_parser("merge", help="join the shards of a store: the bytes that the stage writes without any")
    merge.add_argument("folder", type=Path, help="holds the shards 1ofN.h5, 2ofN.h5 and so on, from --shard K/N")
    merge.add_argument("--shards", type=int, required=True, metavar="N", help="their number")
    merge.add_argument("--out", type=Path, required=True, help="the store to write")
    _add_usage(merge)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export", help="write a trained network as .onnx or .pt2, once it agrees with the network"
    )
    export.add_argument("model", type=Path, help="weights.pth of a stage that trains")
    export.add_argument("--out", required=True, type=Path, help="the file to write: .onnx or .pt2")
    export.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="one photo of this size only (default: any)"
    )
    export.add_argument("--branch", default="segmentation", help="segmentation (default), cam or classification")
    export.add_argument("--opset", type=int, help="version of ONNX's operators (default: the exporter's choice)")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None


def _add_segment(commands: Any) -> None:
    segment = commands.add_parser(
        "segment",
        help="segment your own photos with trained weights",
        description="Segment photos with trained weights. The same command goes on where it was stopped.",
    )
    segment.add_argument(
        "model", type=Path, help="weights.pth of a stage that trains, or with --classes a published file"
    )
    segment.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="photos, videos, folders, patterns; - reads a list from stdin"
    )
    segment.add_argument("--out", required=True, type=Path, help="the folder of results")
    kinds = ["masks", "overlays", "polygons", "geojson", "rle", "photos", "probabilities"]
    segment.add_argument("--write", nargs="+", choices=kinds, default=kinds[:2], help="default: masks overlays")
    segment.add_argument("--no-crf", dest="crf", action="store_false", help="labels of the network alone")
    segment.add_argument("--scales", type=_numbers, help="of the photo, such as 0.75,1,1.25 (default 1)")
    segment.add_argument("--flip", action="store_true", help="the mirrored photo too")
    segment.add_argument("--merge", choices=["mean", "max"], help="of scales and mirrored photos (default mean)")
    segment.add_argument(
        "--labels", type=Path, help="CSV file image,labels, or an export: no other classes are in these photos"
    )
    segment.add_argument(
        "--long-side", type=int, help="larger photos are reduced to this first, pixels (default: never)"
    )
    segment.add_argument("--tile", type=int, help="longest side of what is done at once; 0: any (default 1024 pixels)")
    segment.add_argument("--max-pixels", type=int, help="photos with more are refused (default 100 million)")
    segment.add_argument("--every", type=int, metavar="N", help="of videos, every n-th frame (default 1)")
    segment.add_argument("--threads", type=int, help="threads of numeric libraries (default: OMP_NUM_THREADS or all)")
    segment.add_argument("--overlay-format", choices=["jpg", "png"], help="default: jpg")
    segment.add_argument("--overwrite", action="store_true", help="make all again, whatever the folder holds")
    segment.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    segment.add_argument("--classes", help="names of the classes of a published file: a text file, one a line, or voc")
    segment.add_argument("--network", type=_json, help="with --classes: options of the network as JSON")


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="look at versions, GPU, the CRF's build, memory, disk and paths, and say what to mend",
        description="Look at the installation and the machine. The exit code is 1 where something is broken.",
    )
    doctor.add_argument(
        "--config", type=Path, nargs="+", default=[], help="look at what these config file(s) name, too"
    )
    _add_json(doctor)


def _add_completion(commands: Any) -> None:
    completion = commands.add_parser(
        "completion",
        help="print the completion of this command for a shell",
        description="Print the completion for a shell, such as: rrm completion bash > "
        "~/.local/share/bash-completion/completions/rrm",
    )
    completion.add_argument("shell", choices=SHELLS, help="which shell")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="rrm",
        description="Weakly supervised semantic segmentation with reliable region mining.",
        epilog="Exit codes: 0 done; 1 bad input or something broken, said on standard error; 2 wrong usage; 130"
        " interrupted; 143 stopped by SIGTERM, a training's state is saved.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in STAGES:
        _add_stage(commands, name)
    _add_init(commands)
    _add_own_masks(commands)
    _add_data(commands)
    schema = commands.add_parser("schema", help="print the JSON schema of the configuration")
    schema.add_argument("--markdown", action="store_true", help="all keys as a page of Markdown")
    check = commands.add_parser("check", help="check config file(s) and print the resolved configuration as JSON")
    check.add_argument("config", type=Path, nargs="+", help="config file(s), later ones over earlier ones")
    scores = commands.add_parser("scores", help="per-class IoU of a store of confusion matrices")
    scores.add_argument("confusion", type=Path, help="a confusion_<split>.h5")
    _add_json(scores)
    _add_merge(commands)
    _add_plan(commands)
    submission = commands.add_parser("check-submission", help="check an archive for the VOC evaluation server")
    submission.add_argument("archive", type=Path, help="a submission.tar.gz, made here or elsewhere")
    submission.add_argument("--photos", type=Path, required=True, help="the photos.h5 that holds its photos' list")
    _add_export(commands)
    _add_segment(commands)
    _add_doctor(commands)
    _add_completion(commands)
    return parser


def _call_stage(arguments: argparse.Namespace) -> None:
    stage = STAGES[arguments.command]
    config: Config | None = load(*arguments.config) if arguments.config else None
    options = arguments.options
    if config is not None:
        given = {w: getattr(arguments, w) for w in stage.wildcards if getattr(arguments, w) is not None}
        options = stage_options(config, arguments.command, **given)
    runtime = Runtime.model_validate(arguments.runtime or (config.runtime if config else Runtime()))
    how = runtime.model_dump() | ({"shard": arguments.shard} if stage.sharded else {})
    call = (stage.module, dict(arguments.inputs), arguments.out, options, how, arguments.code)
    if os.environ.get("WORLD_SIZE", "1") == "1":
        _run(arguments.threads, *call)
        return
    if not stage.trains:
        raise RRMError("processes: expected one, for this stage does not train, got torchrun's variables: run it alone")
    from rrm.distributed import joined, processes_here
    from rrm.training import pick_device

    with joined(pick_device(runtime.device), runtime.share_gpus):
        _run(max(1, (arguments.threads or 0) // processes_here()) if arguments.threads else None, *call)


def _prepare(threads: int | None) -> None:
    from rrm.parallel import prepare_process

    prepare_process(threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))


def _run(threads: int | None, stage: str, *call: Any) -> None:
    from rrm.stages.call import Call

    _prepare(threads)
    importlib.import_module(f"rrm.stages.{stage}").run(Call(stage, *call))  # noqa: TID251 (of STAGES)


def _schema(arguments: argparse.Namespace) -> None:
    from rrm.key_page import key_page

    print(key_page() if arguments.markdown else json.dumps(json_schema(), indent=2, sort_keys=True))


def _print_scores(arguments: argparse.Namespace) -> None:
    from rrm.store import Store
    from rrm.tables import per_class_table

    table = per_class_table(Store(arguments.confusion, "confusion"))
    print(table.to_json() if arguments.json else table.to_string())


def _plan(arguments: argparse.Namespace) -> None:
    from rrm.cost import planned_jobs
    from rrm.plan import plan_json, plan_notes, plan_table, plan_text
    from rrm.progress import say
    from rrm.rates import Rates, measure_rates
    from rrm.store import atomic_path
    from rrm.tables import write_table
    from rrm.training import pick_device

    config = load(*arguments.config)
    rates = None
    if arguments.measure:
        rates = measure_rates(config, planned_jobs(config), pick_device(arguments.device), arguments.threads, say)
        if arguments.rates:
            with atomic_path(arguments.rates) as temporary:
                temporary.write_text(rates.to_json(), encoding="utf-8")
    elif arguments.rates:
        rates = Rates.read(arguments.rates)
    table = plan_table(config, rates)
    if arguments.out:
        write_table(arguments.out, table)
    print((plan_json if arguments.json else plan_text)(table, rates, arguments.parallel, plan_notes(config)))


def _merge(arguments: argparse.Namespace) -> None:
    from rrm.shards import merge_shards

    merge_shards(arguments.folder, arguments.shards, arguments.out)


def _check_submission(archive: Path, photos: Path) -> None:
    from rrm.stages.submission import original_sizes
    from rrm.store import Store
    from rrm.submission import check_archive

    store = Store(photos, "photos")
    sizes = original_sizes(store)
    check_archive(archive, list(sizes), sizes, len(store.attrs["classes"]))
    print(f"{archive}: {len(sizes)} masks, as the server wants them")


def _assemble(arguments: argparse.Namespace) -> None:
    from rrm.datasets.assembly import read_manifest
    from rrm.datasets.coco import assemble_coco
    from rrm.datasets.voc2012 import assemble_voc2012

    out = arguments.out
    if arguments.kind == "coco":
        background = arguments.background_images
        new = assemble_coco(out, arguments.images, arguments.annotations, background_images=background)
    else:
        new = assemble_voc2012(out, arguments.voc, arguments.sbd, subset=arguments.subset)
    lists = (read_manifest(out) or {}).get("lists", {})
    photos = ", ".join(f"{name} {facts['photos']}" for name, facts in lists.items())
    print(f"{out}: {'made' if new else 'there already'}, photos of each list: {photos}")


def _init(arguments: argparse.Namespace) -> None:
    from rrm.datasets.voc import read_classes
    from rrm.own_data import Wishes, make_project
    from rrm.own_project import Start

    names = ("labels", "background", "skip_faulty", "val", "seed")
    classes = read_classes(arguments.classes) if arguments.classes else ()
    wishes = Wishes(classes=classes, **{name: getattr(arguments, name) for name in names})
    start = Start(arguments.weights, arguments.steps, arguments.seed)
    print(make_project(arguments.folder, arguments.images, wishes, start))


def _own_masks(arguments: argparse.Namespace) -> None:
    from rrm.own_masks import own_masks
    from rrm.parallel import prepare_process

    prepare_process(arguments.threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    runtime = Runtime.model_validate(arguments.runtime).model_dump()
    own_masks(arguments.model, arguments.out, arguments.options, runtime)


def _export(arguments: argparse.Namespace) -> None:
    from rrm.export import export_network
    from rrm.provenance import file_digest
    from rrm.stages.trained import load_trained

    trained = load_trained(arguments.model, "cpu")
    compared = export_network(
        trained.network,
        arguments.out,
        classes=trained.classes,
        branch=arguments.branch,
        size=tuple(arguments.size) if arguments.size else None,
        opset=arguments.opset,
        provenance={"file": arguments.model.name, "sha256": file_digest(arguments.model), **trained.facts},
    )
    for each in compared:
        print(f"{arguments.out}: {each}")


def _segment(arguments: argparse.Namespace) -> None:
    from rrm.datasets.voc import VOC_CLASSES, read_classes
    from rrm.provenance import file_digest
    from rrm.segmenter import load as load_segmenter
    from rrm.segmenting import Options, segment

    _prepare(arguments.threads)
    named = {None: None, "voc": VOC_CLASSES}
    classes = named[arguments.classes] if arguments.classes in named else read_classes(Path(arguments.classes))
    segmenter = load_segmenter(arguments.model, arguments.device, classes=classes, network=arguments.network)
    names = ("crf", "scales", "flip", "merge", "long_side", "max_pixels", "labels", "overlay_format", "every")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.tile is not None:
        given["tile"] = arguments.tile or None
    options = Options(write=tuple(arguments.write), **given)
    lines = sys.stdin.read().splitlines() if "-" in arguments.inputs else []
    inputs = [text for text in arguments.inputs if text != "-"] + [line for line in lines if line.strip()]
    made, before = segment(
        segmenter, file_digest(arguments.model), inputs, arguments.out, options, overwrite=arguments.overwrite
    )
    print(f"{arguments.out}: {made} photos segmented, {before} were there already")


def _doctor(arguments: argparse.Namespace) -> None:
    from rrm.doctor import as_json, examine

    findings = []
    for finding in examine(arguments.config):
        findings.append(finding)
        if not arguments.json:
            print(finding, flush=True)
    if arguments.json:
        print(as_json(findings))
    broken = [finding.name for finding in findings if finding.status == "broken"]
    if broken:
        raise RRMError(f"{len(broken)} of {len(findings)} broken: {', '.join(broken)}: the arrows say what to do")


def _complete(arguments: argparse.Namespace) -> None:
    import shtab

    parser = build_parser()
    _complete_paths(parser, shtab.FILE)
    print(shtab.complete(parser, arguments.shell))


def _complete_paths(parser: argparse.ArgumentParser, files: Any) -> None:
    """Mark all arguments that are paths, of all commands, for completion."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _complete_paths(each, files)
        elif action.type is Path or action.dest == "inputs":
            action.complete = files  # type: ignore[attr-defined]


_SERVICES: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "schema": _schema,
    "check": lambda arguments: print(json.dumps(load(*arguments.config).model_dump(mode="json"), indent=2)),
    "data": _assemble,
    "completion": _complete,
    "doctor": _doctor,
    "check-submission": lambda arguments: _check_submission(arguments.archive, arguments.photos),
    "export": _export,
    "init": _init,
    "merge": _merge,
    "own-masks": _own_masks,
    "plan": _plan,
    "scores": _print_scores,
    "segment": _segment,
}
"""The commands that are no stages."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; give the exit code.

    Args:
        argv: arguments without the program's name; None takes the process's.

    Returns:
        0: done; 1: bad input, one message on standard error; 2: bad usage; 130: interrupted; 143: stopped by SIGTERM, a
        training with its state saved.
    """
    begin = time.monotonic()
    arguments = build_parser().parse_args(argv)
    try:
        with _stoppable():
            if arguments.command in STAGES:
                _call_stage(arguments)
            else:
                _SERVICES[arguments.command](arguments)
            if getattr(arguments, "usage", None) is not None and os.environ.get("RANK", "0") == "0":
                from rrm.usage import Usage

                Usage.since(begin).write(arguments.usage)
    except KeyboardInterrupt:
        _report(f"rrm {arguments.command}: interrupted; the same command goes on from the last checkpoint")
        return 130
    except _Stopped:
        _report(f"rrm {arguments.command}: stopped by SIGTERM; the same command starts again")
        return 143
    except (RRMError, OSError) as error:
        _report(f"rrm {arguments.command}: {error}")
        return 1
    except (MemoryError, RuntimeError) as error:
        fault = memory_fault(error)
        if fault is None:
            raise
        _report(f"rrm {arguments.command}: expected enough memory, got {fault}: {_LESS_MEMORY}")
        return 1
    return 0


_LESS_MEMORY = (
    "lower train.batch_size, or raise train.accumulate, which takes a batch in parts; run fewer jobs or workers; "
    "`rrm plan --measure` says what a job takes"
)


class _Stopped(BaseException):
    """SIGTERM came."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end what goes on as SIGINT does, so that no half-written file stays; trainings save their state.

    With it a stage ends whose driver was killed.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Stopped

    before = signal.signal(signal.SIGTERM, stop)
    stop_with_driver()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(message: str) -> None:
    """Print what went wrong, once where several processes meet the same fault."""
    from rrm.progress import say

    if os.environ.get("WORLD_SIZE", "1") != "1":
        from rrm.distributed import first_to_fail

        if not first_to_fail():
            return
    say(message)
