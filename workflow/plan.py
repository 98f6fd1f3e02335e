"""What the rules ask about a configuration: each answer is a value or a function of a rule's wildcards.

The rules hold no logic of their own: which stages exist, where their files lie and which options each one
reads is said by `rrm.pipeline`; this module puts it into the shapes that Snakemake's directives take.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from glob import glob
from pathlib import Path
from typing import Any

from rrm.config import Config, resolve
from rrm.pipeline import (
    FIGURES,
    PAGES,
    STAGES,
    Layout,
    drawn_models,
    evaluated_splits,
    gallery_masks,
    judged_splits,
    masks_section,
    models,
    network_section,
    scored_models,
    shard_count,
    stage_options,
    submitted_models,
    variants,
)
from rrm.provenance import code_hash, file_digest, module_hash
from rrm.shards import shard_path

_ROOT = Path(__file__).resolve().parents[1]
_RECIPES = Path("docs", "recipes.md")
_NOTHING = "(?!)"  # a pattern that no name matches


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


class Plan:
    """The answers for one configuration.

    Args:
        raw: the configuration as Snakemake read it.
        source: where it came from, named in errors.
        results: folder of all results, below the working directory.

    Raises:
        RRMErrors: with every mistake of the configuration, before any job starts.
    """

    def __init__(self, raw: Mapping[str, Any], source: str, results: Path = Path("results")) -> None:
        self.config: Config = resolve(raw, source)
        self.layout = Layout(results, self.config.dataset.name)
        self.splits = evaluated_splits(self.config)

    @property
    def manifest(self) -> list[Path]:
        """The manifest of a data set that is made here, else nothing: the photos are there already."""
        dataset = self.config.dataset
        return [self.layout.manifest] if dataset.kind == "demo" or dataset.sources else []

    @property
    def data_stage(self) -> str:
        """The stage that makes the data set."""
        return "assemble" if self.config.dataset.sources else "demo-data"

    @property
    def lists(self) -> str:
        """Digests of the lists and labels of a data set on disk: it is packed again when one changes."""
        dataset = self.config.dataset
        if not dataset.root:
            return ""
        lists = Path(dataset.root, "ImageSets", "Segmentation")
        files = [
            lists / f"{name}.txt" for name in (dataset.train, dataset.val, dataset.test, dataset.submission) if name
        ]
        files += [Path(dataset.root, dataset.labels)] if dataset.labels != "xml" else []
        files += [Path(dataset.root, dataset.classes)] if isinstance(dataset.classes, str) else []
        return _compact({path.name: file_digest(path) for path in files if path.is_file()})

    def options(self, stage: str) -> Callable[[Any], str]:
        """Parameter `options`: what a stage reads of the configuration, for exactly the job's wildcards."""

        def of(wildcards: Any) -> str:
            given = {name: getattr(wildcards, name) for name in STAGES[stage].wildcards}
            if "seed" in given:
                given["seed"] = int(given["seed"])
            return _compact(stage_options(self.config, stage, **given))

        return of

    @staticmethod
    def code(stage: str) -> str:
        """Parameter `code`: content hash of the code of a stage, or of the command `own-masks`."""
        return module_hash("rrm.own_masks") if stage == "own-masks" else code_hash(STAGES[stage].module)

    def runtime(self, wildcards: Any, resources: Any) -> str:
        """Parameter `runtime`: how to run. Snakemake does not track parameters that depend on `resources`."""
        del wildcards, resources
        return _compact(
            self.config.runtime.model_dump(mode="json", exclude={"threads", "processes", "shards", "preload"})
        )

    @staticmethod
    def inputs(wildcards: Any, input: Any) -> list[str]:  # noqa: A002 (Snakemake names it)
        """Parameter `inputs`: the named inputs as arguments of the command line."""
        del wildcards
        return [f"--in={name}={path}" for name, path in input.items() if path]

    def processes(self, stage: str) -> int:
        """Processes of a stage's job: several for the training loop alone, which the linear classifier has not."""
        linear = stage == "classifier" and self.config.classifier.linear is not None
        return self.config.runtime.processes if STAGES[stage].trains and not linear else 1

    def threads(self, stage: str) -> int:
        """Threads of a stage's job: as configured for it, or for all, or 1 (2 for what trains), for each process."""
        usual = 2 if STAGES[stage].trains else 1
        given = self.config.runtime.threads
        return given.get(STAGES[stage].module, given.get("default", usual)) * self.processes(stage)

    def shards(self, stage: str) -> int:
        """Jobs that share the photos of each store that a stage makes."""
        return shard_count(self.config, stage)

    def piece(self, stage: str, store: Path) -> Any:
        """Output of a stage's rule: the whole store, or a shard of it, which goes once they are merged.

        Its folder is named after options and code, so that a shard of others is never taken for it.
        """
        from snakemake.io import temp

        if self.shards(stage) == 1:
            return store
        return temp(str(shard_path(self.layout.shards(store) / "{key}", "{part}", "{parts}")))

    def pieces(self, stage: str, store: Path) -> Callable[[Any], list[Path]]:
        """Input of the rule that merges: all shards of the store with the job's wildcards."""

        def of(wildcards: Any) -> list[Path]:
            made_by = self.options(stage)(wildcards) + self.code(stage)
            whole = Path(str(store).format(**dict(wildcards.items())))
            folder = self.layout.shards(whole) / hashlib.sha256(made_by.encode()).hexdigest()[:16]
            count = self.shards(stage)
            return [shard_path(folder, part, count) for part in range(1, count + 1)]

        return of

    @staticmethod
    def shard(wildcards: Any, resources: Any) -> list[str]:
        """Parameter `shard`: the argument that names a job's part of the photos. Not tracked, as `runtime`."""
        del resources
        return [f"--shard={wildcards.part}/{wildcards.parts}"] if "part" in wildcards.keys() else []  # noqa: SIM118

    @staticmethod
    def joined(wildcards: Any, input: Any) -> list[str]:  # noqa: A002 (Snakemake names it)
        """Parameter `joined`: folder and number of the shards as arguments of the command line."""
        del wildcards
        return [str(Path(input.shards[0]).parent), f"--shards={len(input.shards)}"]

    def launch(self, stage: str) -> Callable[[Any, Any], str]:
        """Parameter `launch`: the command that starts Python, in each process. Not tracked, as `runtime`."""

        def of(wildcards: Any, resources: Any) -> str:
            del wildcards, resources
            count = self.processes(stage)
            return f"torchrun --standalone --nproc-per-node {count}" if count > 1 else "python"

        return of

    def gpu(self, stage: str) -> int:
        """GPUs of a job that runs a network, or the CRF of a whole split there; one a process.

        The driver is asked where the configuration does not say: torch would cost seconds at each call.
        """
        device = self.config.runtime.device
        seen = any(Path("/dev").glob("nvidia[0-9]*"))
        return self.processes(stage) * (device == "cuda" or (device == "auto" and seen))

    def pattern(self, *groups: str) -> str:
        """Regular expression of the names of the models, of all or of those that begin so (`methods/`, `step_two/`)."""
        names = [name for name in scored_models(self.config) if name.startswith(groups or "")]
        return "|".join(map(re.escape, names)) or _NOTHING

    def start(self, stage: str) -> Callable[[Any], list[Path]]:
        """Input `start`: the weights that a job starts from, where it takes over any of another stage's.

        A fully supervised bound takes over the classifier at most, never a network trained by the method.
        """
        layout, classifier = self.layout, self.config.classifier.enabled

        def of(wildcards: Any) -> list[Path]:
            if stage in ("step-two", "bound") and not network_section(self.config, wildcards.model).warm_start:
                return []
            if stage == "step-two":
                return [layout.weights(wildcards.seed, "one_step")]
            return [layout.classifier(wildcards.seed)] if classifier else []

        return of

    @property
    def cold(self) -> list[str]:
        """Parameters that say, where there is no classifier to start from, that there is none.

        The profiles leave out Snakemake's trigger for changed sets of input files, for shards are among them, so what
        no option tells of such a change is told by parameters.
        """
        return [] if self.config.classifier.enabled else ["from the weights of the configuration"]

    def masks_network(self, wildcards: Any) -> Path:
        """Input `model` of a set of pseudo masks: the weights of the network that it comes from."""
        if masks_section(self.config, wildcards.masks).network == "classifier":
            return self.layout.classifier(wildcards.seed)
        return self.layout.weights(wildcards.seed, "one_step")

    def masks_source(self, wildcards: Any) -> str:
        """Parameter `network` of an affinity network: which network its set of pseudo masks comes from (see `cold`)."""
        return masks_section(self.config, wildcards.masks).network

    def masks_affinity(self, wildcards: Any) -> list[Path]:
        """Input `affinity` of a set of pseudo masks: the affinity network of its random walk, where it has one."""
        walk = masks_section(self.config, wildcards.masks).random_walk
        return [self.layout.affinity(wildcards.seed, wildcards.masks)] if walk else []

    def pseudo_masks(self, wildcards: Any) -> Path:
        """Input `masks` of step two: the set that the network is trained on."""
        name = network_section(self.config, wildcards.model).pseudo_masks
        return self.layout.pseudo_masks(wildcards.seed, name)

    def bound_labels(self, wildcards: Any) -> Path:
        """Input `masks` of a bound: the training masks, or what is derived from them."""
        return self.layout.labels(network_section(self.config, wildcards.model).labels)

    def weights(self, wildcards: Any) -> Path:
        """Input `model` of a prediction: the weights of its model."""
        return self.layout.weights(wildcards.seed, wildcards.model)

    def confusions(self, *groups: str) -> dict[str, Path]:
        """Confusion matrices by `seed:model:split`, of all seeds, of the models of these groups (`_scored`)."""
        return {
            f"{seed}:{model}:{split}": self.layout.confusion(seed, model, split)
            for seed in self.config.seeds
            for model, splits in self._scored(groups).items()
            for split in splits
        }

    def intermediates(self, *groups: str) -> list[Path]:
        """All files between the data and these confusion matrices, as inputs of the tables.

        Snakemake makes a missing intermediate again only for a job that has to run. Without this, a training that was
        stopped while it was done anew (its old weights are then gone) would leave what was predicted from the old ones.
        """
        layout, scored = self.layout, self._scored(groups)
        named = " ".join(scored)
        masks = {split for splits in scored.values() for split in splits} | ({"train"} if "bounds/" in named else set())
        paths = [*self.manifest, layout.photos, *map(layout.masks, sorted(masks))]
        seen = {
            self.config.bounds[name.removeprefix("bounds/")].labels for name in scored if name.startswith("bounds/")
        }
        paths += map(layout.labels, sorted(seen - {"masks"}))
        for seed in self.config.seeds:
            paths += [layout.classifier(seed)] if self.config.classifier.enabled else []
            paths += self._masks_files(seed, scored)
            paths += dict.fromkeys(layout.weights(seed, model) for model in scored)
            paths += [layout.prediction(seed, model, split) for model, splits in scored.items() for split in splits]
        return paths

    def _used_masks(self, names: Iterable[str]) -> set[str]:
        sections = self.config.step_two
        return {sections[name.removeprefix("step_two/")].pseudo_masks for name in names if name.startswith("step_two/")}

    def _walks(self, names: Iterable[str]) -> list[str]:
        """Sets of pseudo masks with a random walk that these models are trained on."""
        return [name for name in sorted(self._used_masks(names)) if masks_section(self.config, name).random_walk]

    def _masks_files(self, seed: int | str, names: Iterable[str]) -> list[Path]:
        """Pseudo masks that these models are trained on, and the affinity networks of those with a random walk."""
        names = list(names)
        walks = [self.layout.affinity(seed, name) for name in self._walks(names)]
        return walks + [self.layout.pseudo_masks(seed, name) for name in sorted(self._used_masks(names))]

    def _scored(self, groups: tuple[str, ...]) -> dict[str, list[str]]:
        """Models and the splits they are scored on: for "ablation" (Tables 1 and 2), "comparison" (3, 4, 5) or both."""
        every, few = scored_models(self.config), ["one_step", *variants(self.config)]
        names = {"ablation": few, "comparison": models(self.config)}
        wanted = [name for group in groups for name in names[group]]
        return {name: every[name] if "comparison" in groups else ["val"] for name in dict.fromkeys(wanted)}

    def origin(self, wildcards: Any) -> list[Path]:
        """What a model's predictions come from, as inputs of its archive (see `intermediates`)."""
        layout, seed, model = self.layout, wildcards.seed, wildcards.model
        paths = [layout.classifier(seed)] if self.config.classifier.enabled else []
        paths += [] if model.startswith("methods/") else [layout.weights(seed, "one_step")]
        return [*paths, layout.weights(seed, model), *self._masks_files(seed, [model])]

    def lineage(self, wildcards: Any) -> str:
        """Parameter `lineage`: options of the trainings behind a model, so that its archive is made again with them."""
        model, seed = wildcards.model, int(wildcards.seed)
        own = ("method", {"model": model}) if model.startswith("methods/") else ("one-step", {})
        chain: list[tuple[str, dict[str, str]]] = [("classifier", {}), own]
        for name in self._used_masks([model]):
            chain += [("affinity", {"masks": name})] * bool(masks_section(self.config, name).random_walk)
            chain += [("pseudo-masks", {"masks": name}), ("step-two", {"model": model})]
        return _compact([stage_options(self.config, stage, seed=seed, **names) for stage, names in chain])

    @property
    def submissions(self) -> list[Path]:
        """Archives for the evaluation server, of all seeds."""
        names = submitted_models(self.config)
        return [self.layout.submission(seed, name) for seed in self.config.seeds for name in names]

    @property
    def files(self) -> list[Path]:
        """All files that jobs make of other files, and those they make them of."""
        groups = ("ablation", "comparison")
        chain = [*self.intermediates(*groups), *self.confusions(*groups).values()]
        shards = self.layout.run.glob("seed*/**/*.shards/*/*.h5")
        return [*chain, *shards, *self.submissions, *self.tables, *self.figures]

    @property
    def tables(self) -> list[Path]:
        """Every table that the configuration asks for; without masks, those of what can be known."""
        if not self.config.dataset.masks:
            return [self.layout.label_agreement, self.layout.doubt]
        ablation = self.config.ablation
        numbers = [1] * bool(ablation.ratios) + [2] * ablation.pseudo_labels + [3, 4, 5]
        return [*map(self.layout.table, numbers), self.layout.comparisons, self.layout.label_quality]

    @property
    def figures(self) -> list[Path]:
        """Every figure; without masks none, for each shows them."""
        return [] if not self.config.dataset.masks else [self.layout.figure(name) for name in FIGURES]

    @property
    def judged(self) -> dict[str, Path]:
        """Inputs by split: the first seed's one-step predictions that are compared with image-level labels."""
        seed = self.config.seeds[0]
        return {split: self.layout.prediction(seed, "one_step", split) for split in judged_splits(self.config)}

    @property
    def segmented(self) -> list[Path]:
        """The list of segmented photos, where the configuration asks for their masks."""
        return [self.layout.segmented] if self.config.segment else []

    @property
    def segment_weights(self) -> list[Path]:
        """Input `model` of the masks of photos."""
        section = self.config.segment
        return [self.layout.weights(self.config.seeds[0], section.model)] if section else []

    @property
    def segment_options(self) -> str:
        """Parameter `options` of the masks of photos."""
        section, data = self.config.segment, self.config.dataset
        if section is None:
            return ""
        kept = data.model_dump(mode="json", include={"root", "labels", "long_side", "max_pixels"})
        return _compact({**section.model_dump(mode="json", exclude={"model"}), "dataset": kept})

    def segment_photos(self, wildcards: Any) -> str:
        """Parameter `photos`: digest of names and sizes of the photos to segment: new ones are segmented too."""
        del wildcards
        section, data = self.config.segment, self.config.dataset
        if section is None:
            return ""
        inputs = section.photos or [str(Path(data.root or ".", "JPEGImages"))]
        found = [Path(each) for text in inputs for each in glob(text)]  # noqa: PTH207 - patterns may be absolute
        files = {path for each in found for path in [each, *each.rglob("*")]}
        sizes = sorted((str(path), path.stat().st_size) for path in files if path.is_file())
        return hashlib.sha256(_compact(sizes).encode()).hexdigest()[:16]

    @property
    def drawn(self) -> list[str]:
        """Models whose predictions the figures show."""
        return drawn_models(self.config)

    def seen(self, *models: str) -> dict[str, Path]:
        """Inputs of a figure of these models, first seed: `probabilities:<model>` and `confusion:<model>` on val.

        Where there are no masks, there are no matrices, and predictions of the training photos as `train:<model>`.
        """
        layout, seed = self.layout, self.config.seeds[0]
        files = {"probabilities": (layout.prediction, "val")}
        files |= {"confusion": (layout.confusion, "val")} if self.splits else {"train": (layout.prediction, "train")}
        return {
            f"{kind}:{model}": path(seed, model, split) for model in models for kind, (path, split) in files.items()
        }

    def behind(self, *models: str) -> list[Path]:
        """What lies between the data and these models' predictions; inputs for the same reason as `intermediates`."""
        layout, seed = self.layout, self.config.seeds[0]
        paths = [*self.manifest, *([layout.classifier(seed)] if self.config.classifier.enabled else [])]
        paths += self._masks_files(seed, models)
        paths += [layout.weights(seed, name) for name in models]
        return paths + [layout.prediction(seed, name, "val") for name in models]

    @property
    def gallery(self) -> dict[str, Path]:
        """Inputs of the gallery: what its pictures are made of, and `weights:<model>`, beside which histories lie."""
        layout, seed, masks = self.layout, self.config.seeds[0], gallery_masks(self.config)
        found = {"photos": layout.photos, "model": layout.weights(seed, "one_step")}
        found |= {"masks": layout.masks("val")} if self.splits else {}
        if masks is not None:
            section = masks_section(self.config, masks)
            of_classifier = section.network == "classifier"
            found["masks_model"] = layout.classifier(seed) if of_classifier else found["model"]
            found |= {"affinity": layout.affinity(seed, masks)} if section.random_walk else {}
        shown = {f"{seed}:classifier", *(f"{seed}:{name}" for name in self.drawn)}
        found |= {f"weights:{key.partition(':')[2]}": path for key, path in self.trained.items() if key in shown}
        return found | self.seen(*self.drawn)

    @property
    def gallery_page(self) -> list[Path]:
        """The gallery among the results: where nothing is scored, it is what there is to look at."""
        return [] if self.splits else [self.layout.gallery]

    @property
    def trained(self) -> dict[str, Path]:
        """Weights of all networks by `SEED:MODEL`."""
        layout, linear = self.layout, self.config.classifier.linear
        names = [name for name in scored_models(self.config) if not name.startswith("cam/")]
        found = {}
        for seed in self.config.seeds:
            if self.config.classifier.enabled and linear is None:
                found[f"{seed}:classifier"] = layout.classifier(seed)
            found |= {f"{seed}:affinity/{name}": layout.affinity(seed, name) for name in self._walks(names)}
            found |= {f"{seed}:{name}": layout.weights(seed, name) for name in names}
        return found

    @property
    def page_sources(self) -> dict[str, Path]:
        """What each page of the report shows."""
        layout = self.layout
        others = {"gallery": layout.gallery, "run_times": layout.run_times}
        others |= {"config": layout.resolved_config, "departures": layout.departures}
        # absolute in the workflow of another folder: the prefix of a module leaves absolute paths as they are
        recipes = _RECIPES if Path.cwd() == _ROOT else _ROOT / _RECIPES
        return {path.stem: path for path in self.tables} | others | {"recipes": recipes}

    def page_source(self, wildcards: Any) -> Path:
        """Input `source` of a page."""
        return self.page_sources[wildcards.page]

    @property
    def pages(self) -> list[Path]:
        """What the report shows beside tables and figures."""
        return [self.layout.training_curves, *map(self.layout.page, self.page_sources)]

    @staticmethod
    def category(wildcards: Any) -> str:
        """Category of a page in the report."""
        return PAGES[wildcards.page][1]

    @staticmethod
    def titled(page: str = "", form: str = "page") -> Any:
        """Labels of a result in the report; those of a page without a name follow the job's."""

        def of(wildcards: Any) -> dict[str, str]:
            name = page.format(**dict(wildcards.items())) if page else wildcards.page
            return {"result": PAGES[name][0], "format": form}

        return of

    def log(self, *parts: str, shards_of: str = "") -> Path:
        """Log of a job, or of each shard of it that the stage `shards_of` makes."""
        return self._told(self.layout.run / "logs", "log", parts, shards_of)

    def usage(self, *parts: str, shards_of: str = "") -> Path:
        """Time and memory that a job took, or each shard of it, written by itself."""
        return self._told(self.layout.usage, "json", parts, shards_of)

    def _told(self, folder: Path, suffix: str, parts: tuple[str, ...], shards_of: str) -> Path:
        path = folder.joinpath(*parts[:-1], f"{parts[-1]}.{suffix}")
        if not shards_of or self.shards(shards_of) == 1:
            return path
        return shard_path(self.layout.shards(path) / "{key}", "{part}", "{parts}", f".{suffix}")
