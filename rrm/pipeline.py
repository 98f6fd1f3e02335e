"""The stages, where each one's files lie, and which part of the configuration each one reads.

Snakemake's rules and the command line both take paths and options from here, so that a stage run by hand makes the same
file as the workflow does, and a key re-runs exactly the stages that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrm.config import Config, Method, OneStep, PseudoMasks, Section, StepTwo
from rrm.errors import RRMError

SPLITS = ("train", "val", "test", "submission")


@dataclass(frozen=True)
class Stage:
    """One stage: module `rrm.stages.<module>`, its named input files and the wildcards its options depend on.

    `trains` says whether it runs the training loop, which several processes can share, `sharded` whether it goes
    through a list of photos, which several jobs can share (`rrm.shards`).
    """

    module: str
    inputs: tuple[str, ...]
    wildcards: tuple[str, ...]
    help: str
    trains: bool = False
    sharded: bool = False


STAGES: Mapping[str, Stage] = {
    "demo-data": Stage("demo_data", (), (), "make the embedded demo data set in VOC layout"),
    "assemble": Stage("assemble", (), (), "assemble VOC 2012 and SBD, as published, to a folder in VOC layout"),
    "pack-photos": Stage("pack_photos", (), (), "pack photos and image-level labels of all splits"),
    "pack-masks": Stage("pack_masks", (), ("split",), "pack the masks of one split"),
    "sparse-labels": Stage("sparse_labels", ("masks",), ("labels",), "scribbles or boxes derived from training masks"),
    "classifier": Stage(
        "classifier", ("photos",), ("seed",), "train the classification branch (warm start)", trains=True
    ),
    "one-step": Stage("one_step", ("photos", "start"), ("seed", "model"), "one-step RRM training", trains=True),
    "method": Stage(
        "method", ("photos", "start"), ("seed", "model"), "train another weakly supervised method", trains=True
    ),
    "affinity": Stage(
        "affinity", ("photos", "model"), ("seed", "masks"), "train the affinities of a set's random walk", trains=True
    ),
    "pseudo-masks": Stage(
        "pseudo_masks",
        ("photos", "model", "affinity"),
        ("seed", "masks"),
        "a set of pseudo masks of training photos",
        sharded=True,
    ),
    "step-two": Stage(
        "step_two",
        ("photos", "masks", "start"),
        ("seed", "model"),
        "train a segmentation network on pseudo masks",
        trains=True,
    ),
    "bound": Stage(
        "bound",
        ("photos", "masks", "start"),
        ("seed", "model"),
        "the same on masks: a fully supervised bound",
        trains=True,
    ),
    "predict": Stage(
        "predict",
        ("photos", "model"),
        ("model", "split"),
        "class probabilities of a split (photos of your own: rrm segment)",
        sharded=True,
    ),
    "evaluate": Stage(
        "evaluate",
        ("photos", "masks", "probabilities"),
        ("split",),
        "confusion matrices without and with CRF",
        sharded=True,
    ),
    "submission": Stage(
        "submission", ("photos", "probabilities"), (), "archive of predictions for the VOC evaluation server"
    ),
    "ablation-table": Stage(
        "ablation_table", (), ("table",), "Table 1 (shares of reliable pixels) or 2 (labels, losses)"
    ),
    "class-table": Stage("class_table", (), ("table",), "Table 3 (val) or 4 (test): IoU of each class"),
    "table5": Stage("table5", (), (), "the comparison table, reported and measured rows"),
    "comparisons": Stage("comparisons", (), (), "which model is above which: paired bootstrap over photos"),
    "figure2": Stage("figure2", ("photos", "masks", "model", "confusion"), (), "CAM of each scale and their average"),
    "figure3": Stage("figure3", ("photos", "masks", "model", "confusion"), (), "reliable labels step by step"),
    "figure4": Stage("figure4", ("photos", "masks"), (), "predictions of all methods beside the ground truth"),
    "failures": Stage("failures", ("photos", "masks"), (), "photos on which the best model does worst"),
    "label-quality": Stage(
        "label_quality",
        ("photos", "masks", "model", "confusion"),
        (),
        "precision and coverage of the mined labels on val",
    ),
    "photo-facts": Stage(
        "photo_facts",
        ("photos", "model", "train", "val"),
        (),
        "what is known of photos without masks: predicted classes, confidence, mined labels",
    ),
    "label-agreement": Stage(
        "label_agreement", ("photos", "facts"), (), "predicted classes beside image-level labels, for each class"
    ),
    "doubt": Stage("doubt", ("photos", "facts"), (), "photos by how doubtful their predictions are"),
    "training-curves": Stage("training_curves", (), (), "loss terms of each network over its steps"),
    "gallery": Stage(
        "gallery",
        ("photos", "masks", "model", "masks_model", "affinity"),
        (),
        "a page to look at photos, from CAM to prediction",
    ),
    "run-times": Stage("run_times", (), (), "time and memory of the jobs, from what each wrote"),
    "resolved-config": Stage("resolved_config", (), (), "the configuration with its recipes applied"),
    "departures": Stage("departures", (), (), "what the configuration sets otherwise than its recipes"),
    "page": Stage("page", ("source",), (), "a table, a configuration, a text or the gallery as a page of the report"),
}
FIGURES = ("figure2", "figure3", "figure4", "failures")

PAGES: Mapping[str, tuple[str, str]] = {
    "table1": ("Table 1: shares of reliable pixels", "Tables"),
    "table2": ("Table 2: pseudo labels and losses", "Tables"),
    "table3": ("Table 3: classes on val", "Tables"),
    "table4": ("Table 4: classes on test", "Tables"),
    "table5": ("Table 5: comparison", "Tables"),
    "comparisons": ("Which model is above which", "Tables"),
    "label_quality": ("Mined labels: precision and coverage", "Tables"),
    "label_agreement": ("Predicted classes and image-level labels", "Tables"),
    "doubt": ("Photos, most doubtful first", "Tables"),
    "gallery": ("What the networks see", "Gallery"),
    "run_times": ("Time and memory of the jobs", "Run times"),
    "config": ("The configuration, recipes applied", "Configuration"),
    "departures": ("What departs from the recipes", "Configuration"),
    "recipes": ("Where the recipes depart from the paper", "Configuration"),
}
"""Pages of the report: title and category."""

LABELS, LOSSES = ("rrm", "cam"), ("ce", "joint")


def variant(config: Config, labels: str, ratio: float, loss: str) -> str:
    """Name of the one-step network with these labels, this share of reliable pixels and this loss.

    Args:
        config: the validated configuration.
        labels: "rrm" (the configured mining rule) or "cam" (Eq. 6 alone).
        ratio: share of each class's pixels that is kept.
        loss: "joint", or "ce" for cross-entropy alone.

    Returns:
        "one_step" where the configuration's own network is that, else "ablation/<labels>-<ratio>-<loss>".
    """
    if (labels, ratio, loss) == ("rrm", config.one_step.mining.ratio, "joint"):
        return "one_step"
    return f"ablation/{labels}-{ratio:g}-{loss}"


def variants(config: Config) -> dict[str, tuple[str, float, str]]:
    """Labels, ratio and loss of each variant of the one-step network, by name."""
    ablation, ratio = config.ablation, config.one_step.mining.ratio
    wanted = [("rrm", each, loss) for each in ablation.ratios for loss in LOSSES]
    wanted += [(labels, ratio, loss) for labels in LABELS for loss in LOSSES] if ablation.pseudo_labels else []
    named = {variant(config, *each): each for each in wanted}
    return {name: each for name, each in named.items() if name != "one_step"}


def one_step_section(config: Config, model: str) -> OneStep:
    """The section `one_step` of a model `one_step` or `ablation/<name>`.

    Raises:
        RRMError: no such model in the configuration.
    """
    if model == "one_step":
        return config.one_step
    known = variants(config)
    if model not in known:
        raise RRMError(f"model: expected one of {['one_step', *known]}, got {model!r}: add it to config or correct it")
    labels, ratio, loss = known[model]
    mining = {"ratio": ratio} | ({"rule": "cam"} if labels == "cam" else {})
    changed: dict[str, Section] = {"mining": config.one_step.mining.model_copy(update=mining)}
    if loss == "ce":
        changed["energy"] = config.one_step.energy.model_copy(update={"weight": 0.0})
    return config.one_step.model_copy(update=changed)


def models(config: Config) -> list[str]:
    """Names of all models with rows in Table 5, in table order."""
    cam = [f"cam/{labels}" for labels in config.cam_rows]
    groups: dict[str, Iterable[str]] = {"methods": config.methods, "step_two": config.step_two, "bounds": config.bounds}
    return [*cam, "one_step", *(f"{group}/{name}" for group, entries in groups.items() for name in entries)]


def drawn_models(config: Config) -> list[str]:
    """Names of the models whose predictions the figures show: other methods, one-step, step two."""
    names = models(config)
    return [name for group in ("methods", "one_step", "step_two") for name in names if name.partition("/")[0] == group]


def scored_models(config: Config) -> dict[str, list[str]]:
    """Splits that each model is scored on: those of Table 5 on all, variants of the one-step network on val."""
    splits = evaluated_splits(config)
    return {**dict.fromkeys(models(config), splits), **{name: ["val"] for name in variants(config)}}


def network_section(config: Config, model: str) -> StepTwo:
    """The section of a model `step_two/<name>` or `bounds/<name>`.

    Raises:
        RRMError: no such entry in the configuration.
    """
    group, _, name = model.partition("/")
    sections: Mapping[str, StepTwo] = {"step_two": config.step_two, "bounds": config.bounds}.get(group, {})
    if name not in sections:
        raise RRMError(
            f"model: expected one of {models(config)}, got {model!r}: add it to the config or correct the name"
        )
    return sections[name]


def masks_section(config: Config, masks: str) -> PseudoMasks:
    """The section of a set of pseudo masks.

    Raises:
        RRMError: no such set in the configuration.
    """
    if masks not in config.pseudo_masks:
        raise RRMError(
            f"masks: expected one of {', '.join(config.pseudo_masks)}, got {masks!r}: add the set to the config or "
            "correct the name"
        )
    return config.pseudo_masks[masks]


def method_section(config: Config, model: str) -> Method:
    """The section of a model `methods/<name>`, with the network of `one_step` where it has none of its own.

    Raises:
        RRMError: no such entry in the configuration.
    """
    group, _, name = model.partition("/")
    if group != "methods" or name not in config.methods:
        raise RRMError(
            f"model: expected one of {[f'methods/{k}' for k in config.methods]}, got {model!r}: add it to the config "
            "or correct the name"
        )
    section = config.methods[name]
    return section if section.network else section.model_copy(update={"network": config.one_step.network})


def evaluated_splits(config: Config) -> list[str]:
    """Splits with public masks to score on: val, and test where the data set names one; none without masks."""
    if not config.dataset.masks:
        return []
    return ["val"] + (["test"] if config.dataset.kind == "demo" or config.dataset.test else [])


def judged_splits(config: Config) -> list[str]:
    """Splits whose predictions are compared with image-level labels: where there are no masks."""
    return [] if config.dataset.masks else ["train", "val"]


def submitted_models(config: Config) -> list[str]:
    """Models of which archives for the evaluation server are made: those of Table 5 that need nothing but photos.

    Bounds have seen true masks, and the CAM that is given image labels has none on photos without annotations.
    """
    if config.dataset.submission is None:
        return []
    return [name for name in models(config) if name != "cam/given" and not name.startswith("bounds/")]


def shard_count(config: Config, stage: str) -> int:
    """Jobs that share the photos of each store that a stage makes: 1 where they are not divided."""
    return int(getattr(config.runtime.shards, STAGES[stage].module)) if STAGES[stage].sharded else 1


def stage_options(
    config: Config,
    stage: str,
    *,
    seed: int = 0,
    model: str = "",
    split: str = "",
    table: str = "",
    masks: str = "one_step",
    labels: str = "scribbles",
) -> dict[str, Any]:
    """The part of the configuration that a stage reads: all that its output depends on, beside its inputs and its code.

    Args:
        config: the validated configuration.
        stage: a key of `STAGES`.
        seed: for stages with a seed.
        model: `"cam/predicted"`, `"cam/given"`, `"one_step"`, `"ablation/<name>"`, `"methods/<name>"`,
            `"step_two/<name>"` or `"bounds/<name>"`, for stages with a model.
        split: one of `SPLITS`, for stages with a split.
        table: number of the paper's table, for stages with a table.
        masks: name of a set of pseudo masks, for the stages that make them.
        labels: `"scribbles"` or `"boxes"`, for the stage that derives them.

    Returns:
        JSON-serialisable mapping.
    """
    if stage not in STAGES:
        raise RRMError(f"stage: expected one of {', '.join(STAGES)}, got {stage!r}")
    whole = {"config": config.model_dump(mode="json", exclude={"runtime", "segment", "gallery"})}
    options: dict[str, Callable[[], dict[str, Any]]] = {
        "demo-data": lambda: {"demo": _plain(config.dataset.demo)},
        "assemble": lambda: {"sources": config.dataset.sources and _plain(config.dataset.sources)},
        "pack-photos": lambda: {"dataset": _packed_options(config)},
        "pack-masks": lambda: {"dataset": _packed_options(config), "split": split},
        "sparse-labels": lambda: {"labels": labels},
        "classifier": lambda: {
            "network": _trained_options(config.one_step)["network"],
            "classifier": _plain(config.classifier),
            "seed": seed,
        },
        "one-step": lambda: {"one_step": _trained_options(one_step_section(config, model or "one_step")), "seed": seed},
        "method": lambda: {"method": _trained_options(method_section(config, model)), "seed": seed},
        "affinity": lambda: {**_affinity_options(config, masks), "seed": seed},
        "pseudo-masks": lambda: {"pseudo_masks": _masks_options(masks_section(config, masks)), "seed": seed},
        "step-two": lambda: (
            {"step_two": _trained_options(network_section(config, model), "labels", "views")} | {"seed": seed}
        ),
        "bound": lambda: (
            {"step_two": _trained_options(network_section(config, model), "pseudo_masks", "views")} | {"seed": seed}
        ),
        "predict": lambda: _prediction_options(config, model, split),
        "evaluate": lambda: {"crf": _plain(config.evaluation.crf), "split": split},
        "submission": lambda: {"crf": _plain(config.evaluation.crf) if config.evaluation.submission_crf else None},
        "ablation-table": lambda: {**whole, "table": table},
        "class-table": lambda: {**whole, "table": table},
        "table5": lambda: whole,
        "comparisons": lambda: whole,
        **dict.fromkeys(("figure2", "figure3", "label-quality", "photo-facts"), lambda: _mining_figure_options(config)),
        **dict.fromkeys(("figure4", "failures"), lambda: _prediction_figure_options(config)),
        **dict.fromkeys(
            ("label-agreement", "doubt"), lambda: {"dataset": config.dataset.name, "seed": config.seeds[0]}
        ),
        "training-curves": dict,
        "gallery": lambda: _gallery_options(config),
        "run-times": lambda: {"seeds": config.seeds, "models": [*scored_models(config), *_made_masks(config)]},
        "resolved-config": lambda: {"config": config.model_dump(mode="json", exclude={"runtime", "segment"})},
        "departures": lambda: whole,
        "page": dict,
    }
    return options[stage]()


def _packed_options(config: Config) -> dict[str, Any]:
    """What packing reads of the data set: of one that was assembled, not from where; no mask."""
    return config.dataset.model_dump(mode="json", exclude={"sources", "masks"})


def _trained_options(section: OneStep | StepTwo | Method, *unread: str) -> dict[str, Any]:
    """What a training reads of its section: neither the texts of its row nor keys that are `unread`."""
    options = {key: value for key, value in _plain(section).items() if key not in ("label", *unread)}
    options["network"].pop("start")
    return options


def _made_masks(config: Config) -> list[str]:
    """Names of sets of pseudo masks and of their affinity networks, as the jobs that make them are called."""
    return [f"{folder}/{name}" for name in config.pseudo_masks for folder in ("affinity", "pseudo_masks")]


_LEARNED = ("mining", "train")  # keys of a random walk that the affinities depend on, beside its radius


def _affinity_options(config: Config, masks: str) -> dict[str, Any]:
    """What the training of the affinities reads: the walk itself is done with the masks."""
    section = masks_section(config, masks)
    if section.random_walk is None:
        raise RRMError(
            f"pseudo_masks.{masks}: expected a random_walk, got none: only that has affinities to be trained"
        )
    walk = section.random_walk.model_dump(mode="json", include={"radius", *_LEARNED})
    network = _trained_options(config.one_step)["network"]
    return {"network": network, "cam_scales": section.cam_scales, "random_walk": walk}


def _masks_options(section: PseudoMasks) -> dict[str, Any]:
    """What a set of pseudo masks reads: of a random walk, all but the training of its affinities."""
    walk = section.random_walk
    walked = walk.model_dump(mode="json", exclude=set(_LEARNED)) if walk else None
    return {**_plain(section), "random_walk": walked}


def _plain(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="json")


def _mining_figure_options(config: Config) -> dict[str, Any]:
    """What the figures of the one-step network's labels depend on; they show the first seed."""
    one_step = {"cam": _plain(config.one_step.cam), "mining": _plain(config.one_step.mining)}
    return {"dataset": config.dataset.name, "seed": config.seeds[0], "one_step": one_step}


def _prediction_figure_options(config: Config) -> dict[str, Any]:
    """What the figures of predictions depend on: all but what they do not show and other seeds; columns in order."""
    unseen = {"runtime", "segment", "gallery", "ablation", "bounds", "cam_rows"}
    shown = config.model_dump(mode="json", exclude=unseen) | {"seeds": config.seeds[:1]}
    return {"config": shown, "models": drawn_models(config)}


def gallery_masks(config: Config) -> str | None:
    """Name of the set of pseudo masks that the gallery shows: that of the first network of step two; None: no set."""
    return next((section.pseudo_masks for section in config.step_two.values()), None)


def _gallery_options(config: Config) -> dict[str, Any]:
    masks = gallery_masks(config)
    made = _masks_options(masks_section(config, masks)) if masks else None
    shown = _prediction_figure_options(config) | _mining_figure_options(config)
    return {**shown, "pseudo_masks": made, "photos": config.gallery.photos}


def _prediction_options(config: Config, model: str, split: str) -> dict[str, Any]:
    group, _, image_labels = model.partition("/")
    if group == "cam":
        cam = {**_plain(config.one_step.cam), "exponent": config.evaluation.cam_exponent}
        precision = config.evaluation.views.precision
        return {"cam": cam, "image_labels": image_labels, "precision": precision, "split": split}
    own = network_section(config, model).views if group in ("step_two", "bounds") else None
    return {"views": _plain(own or config.evaluation.views), "split": split}


@dataclass(frozen=True)
class Layout:
    """Where the files of a run lie.

    Example:
        >>> Layout(Path("results"), "demo").prediction(0, "one_step", "val").as_posix()
        'results/demo/seed0/one_step/probabilities_val.h5'
    """

    results: Path
    name: str

    @property
    def run(self) -> Path:
        """Folder of the intermediates of this data set."""
        return self.results / self.name

    @property
    def manifest(self) -> Path:
        """Written last into the folder of a data set that is made here: the demo, or one that is assembled."""
        return self.run / "voc" / "manifest.json"

    @property
    def photos(self) -> Path:
        """Store of photos and image-level labels of all splits."""
        return self.run / "photos.h5"

    def masks(self, split: str) -> Path:
        """Store of the masks of one split."""
        return self.run / f"masks_{split}.h5"

    def labels(self, labels: str) -> Path:
        """Store of what a bound sees of the training masks: `"masks"` themselves, `"scribbles"` or `"boxes"`."""
        return self.masks("train") if labels == "masks" else self.run / f"{labels}_train.h5"

    def seed(self, seed: int | str) -> Path:
        """Folder of one seed's run."""
        return self.run / f"seed{seed}"

    def classifier(self, seed: int | str) -> Path:
        """Weights of the warm start."""
        return self.seed(seed) / "classifier.pth"

    def weights(self, seed: int | str, model: str) -> Path:
        """Final weights of a model; the CAM rows use the one-step network's."""
        return self.seed(seed) / ("one_step" if model.startswith("cam/") else model) / "weights.pth"

    def affinity(self, seed: int | str, masks: str) -> Path:
        """Weights of the affinity network of a set of pseudo masks with a random walk."""
        return self.seed(seed) / "affinity" / f"{masks}.pth"

    def pseudo_masks(self, seed: int | str, masks: str) -> Path:
        """Store of a set of pseudo masks."""
        return self.seed(seed) / "pseudo_masks" / f"{masks}.h5"

    def prediction(self, seed: int | str, model: str, split: str) -> Path:
        """Store of class probabilities."""
        return self.seed(seed) / model / f"probabilities_{split}.h5"

    def confusion(self, seed: int | str, model: str, split: str) -> Path:
        """Store of confusion matrices, one an image, without and with CRF."""
        return self.seed(seed) / model / f"confusion_{split}.h5"

    @staticmethod
    def shards(store: Path) -> Path:
        """Folder of the shards that a store is merged from, and of their logs."""
        return store.with_name(f"{store.stem}.shards")

    def submission(self, seed: int | str, model: str) -> Path:
        """Archive for the evaluation server."""
        return self.seed(seed) / model / "submission.tar.gz"

    def table(self, number: int | str) -> Path:
        """One of the paper's tables."""
        return self.results / f"table{number}.csv"

    def figure(self, name: str) -> Path:
        """One of `FIGURES`."""
        return self.results / f"{name}.png"

    @property
    def label_quality(self) -> Path:
        """Precision and coverage of the mined labels."""
        return self.results / "label_quality.csv"

    @property
    def photo_facts(self) -> Path:
        """What is known of photos without masks."""
        return self.run / "photo_facts.h5"

    @property
    def label_agreement(self) -> Path:
        """Predicted classes beside image-level labels."""
        return self.results / "label_agreement.csv"

    @property
    def doubt(self) -> Path:
        """Photos, the most doubtful first."""
        return self.results / "doubt.csv"

    @property
    def segmented(self) -> Path:
        """Classes of each photo that was segmented; masks and overlays lie in the folder of that name."""
        return self.results / "segmented.csv"

    @property
    def comparisons(self) -> Path:
        """Which model is above which."""
        return self.results / "comparisons.csv"

    @property
    def training_curves(self) -> Path:
        """Loss terms of all networks."""
        return self.run / "training_curves.svg"

    @property
    def gallery(self) -> Path:
        """The page to look at; what it shows lies beside it."""
        return self.run / "gallery" / "index.html"

    @property
    def run_times(self) -> Path:
        """Time and memory of the jobs."""
        return self.run / "run_times.csv"

    @property
    def usage(self) -> Path:
        """Folder of what each job took, beside `run_times`."""
        return self.run / "usage"

    @property
    def resolved_config(self) -> Path:
        """The configuration with its recipes applied."""
        return self.run / "config.yaml"

    @property
    def departures(self) -> Path:
        """What the configuration sets otherwise than its recipes."""
        return self.run / "departures.csv"

    def page(self, name: str) -> Path:
        """One of `PAGES`."""
        return self.run / "pages" / f"{name}.html"
