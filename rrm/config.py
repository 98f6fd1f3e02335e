"""Configuration: the one place that says which keys exist, their types, ranges, defaults and meaning.

A config file (YAML) is merged over the recipe that it names (`rrm.recipes`), validated as a whole and split into one
section a stage, so that a change of one key concerns the stages that read it and what follows them. The JSON schema in
`workflow/schemas/config.schema.json` is generated from these models (`rrm schema`).
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rrm.errors import RRMErrors
from rrm.limits import CONFIG_BYTES, CONFIG_DEPTH, CONFIG_NODES, Refused, read_text
from rrm.recipes import METHOD_RECIPES, NETWORK_RECIPES, ONE_STEP_RECIPES, RANDOM_WALK_RECIPE

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Scales = Annotated[list[Annotated[float, Field(gt=0, le=4)]], Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")]
LabelledName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


AnySection = TypeVar("AnySection", bound=Section)


class DemoData(Section):
    """The embedded demo data set (`rrm.datasets.demo`)."""

    seed: int = Field(0, ge=0, description="seed of the generator")
    size: int = Field(96, ge=64, le=512, description="side of the square photos, pixels")
    train: int = Field(480, ge=5, description="number of training photos")
    val: int = Field(120, ge=5, description="number of validation photos")
    test: int = Field(120, ge=5, description="number of test photos")


class Sources(Section):
    """PASCAL VOC 2012 and SBD as they are published (`rrm.datasets.voc2012`)."""

    voc: list[str] = Field(
        min_length=1, description="VOCtrainval_11-May-2012.tar, VOC2012test.tar, or the folders they were extracted to"
    )
    sbd: str = Field(description="SBD's benchmark.tgz, or the folder it was extracted to")
    subset: bool = Field(False, description="true: do not insist on the official checksums and numbers of photos")


class Dataset(Section):
    """A data set in VOC 2012 layout."""

    kind: Literal["demo", "voc"] = Field("voc", description="demo: made from a seed; voc: a folder in VOC 2012 layout")
    name: Name = Field(description="name in tables and the folder of intermediates below results/")
    root: str | None = Field(None, description="folder that holds JPEGImages/ and ImageSets/ (kind voc)")
    sources: Sources | None = Field(
        None, description="in place of root: the files that VOC 2012 is assembled from below results/ (kind voc)"
    )
    classes: Annotated[list[str], Field(min_length=1)] | str | None = Field(
        None,
        description="foreground class names in label order, or the path below root of a file with one a line; null:"
        " VOC's 20",
    )
    labels: str = Field("xml", description="'xml' (Annotations/*.xml) or the path below root of a CSV 'image,labels'")
    train: str = Field("train", description="name of the training list in ImageSets/Segmentation")
    val: str = Field("val", description="name of the validation list")
    test: str | None = Field(None, description="name of the test list with public masks; null: no test rows")
    submission: str | None = Field(
        None,
        description="name of a list of photos without public masks, of which archives for the VOC evaluation server are"
        " made (kind voc); packed with the others, so naming it later trains anew; null: no archives",
    )
    masks: bool = Field(
        True,
        description="false: there are no masks; nothing is scored, and results show what can be known without them",
    )
    background_images: bool = Field(False, description="true: an image without labels holds background only")
    long_side: int | None = Field(
        None, ge=32, description="photos with a longer side are reduced to it when packed; null: never"
    )
    max_pixels: int = Field(
        50_000_000, ge=1, description="photos and masks with more are refused by their header, before they are decoded"
    )
    demo: DemoData = Field(DemoData(), description="parameters of the generator (kind demo)")

    @model_validator(mode="after")
    def _one_place(self) -> Dataset:
        if self.kind == "voc" and not (self.root or self.sources):
            raise ValueError(
                "root: expected the folder of the data set in VOC layout, got null: give dataset.root, or"
                " dataset.sources to assemble VOC 2012"
            )
        if self.sources and (self.root or self.kind == "demo"):
            raise ValueError("sources: expected null beside root and for the demo, got both: set one of them to null")
        return self

    @model_validator(mode="after")
    def _no_submission_of_the_demo(self) -> Dataset:
        if self.kind == "demo" and self.submission:
            raise ValueError("submission: expected null for the demo, all masks of which are there: remove the key")
        return self


class CRF(Section):
    """Dense CRF (Kraehenbuehl and Koltun 2011) parameters."""

    gaussian_sigma: Positive = Field(3, description="pixels")
    gaussian_weight: NotNegative = Field(3, description="weight of the position kernel")
    bilateral_sigma_xy: Positive = Field(80, description="pixels of the original photo")
    bilateral_sigma_rgb: Positive = Field(13, description="grey levels, 0..255")
    bilateral_weight: NotNegative = Field(10, description="weight of the position and colour kernel")
    iterations: int = Field(10, ge=0, le=100, description="mean-field iterations")


class Optimizer(Section):
    """Optimiser, parameter groups and the polynomial schedule."""

    kind: Literal["sgd", "adamw"] = Field("sgd", description="sgd or adamw")
    lr: Positive = Field(description="base learning rate")
    momentum: NotNegative = Field(0.9, description="SGD momentum")
    weight_decay: NotNegative = Field(description="weight decay of weights")
    bias_decay: bool = Field(True, description="whether biases decay too")
    lr_factors: Annotated[list[NotNegative], Field(min_length=4, max_length=4)] = Field(
        [1, 2, 10, 20], description="factors on lr: backbone weights, backbone biases, head weights, head biases"
    )
    power: NotNegative = Field(0.9, description="exponent of the polynomial schedule; 0: constant")
    schedule: Literal["poly", "poly-restart"] = Field(
        "poly", description="poly-restart: the authors' from-ImageNet script"
    )


class Training(Section):
    """What the one training loop needs, for any stage."""

    steps: Count = Field(description="optimiser steps")
    batch_size: Count = Field(description="images a step, over all parts and processes")
    crop: int = Field(ge=16, description="side of the square crop, pixels")
    scale: Annotated[list[Positive], Field(min_length=2, max_length=2)] = Field(
        [0.7, 1.3], description="range of the random scale"
    )
    scale_per: Literal["batch", "image"] = Field("batch", description="one scale a batch or one an image")
    flip: bool = Field(True, description="random horizontal flip")
    accumulate: Count = Field(
        1, description="parts that a batch is split into, one after the other; the loss is that of the whole batch"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="autocast on a GPU; the CPU uses float32"
    )
    checkpoint_every: Count = Field(200, description="steps between resume checkpoints")
    clip_gradient: Positive | None = Field(None, description="largest norm of the gradient; null: unlimited")
    optimizer: Optimizer = Field(description="optimiser and schedule")


class CAM(Section):
    """Class activation maps, Eq. 1-4."""

    scales: Scales = Field(description="Eq. 2: scales of the photo that are averaged")
    average: Literal["feature", "image"] = Field(
        description="average at the feature map (reference) or at the image (paper)"
    )
    dropout: bool = Field(description="whether dropout is active while CAMs are computed in training")


class Mining(Section):
    """Reliable regions, Eq. 5-7."""

    rule: Literal["reference", "paper", "cam"] = Field(
        description="reference: the authors' code; paper: Eq. 6-7; cam: Eq. 6 only"
    )
    ratio: Share = Field(description="share of each class's pixels that is kept (Table 1)")
    cam_exponent: Positive = Field(
        description="Eq. 4 exponent of the CAM label; reference: of the CRF that decides on background too"
    )
    crf_exponent: Positive = Field(description="Eq. 4 exponent of the scores that the CRF gets (Eq. 5)")
    score_threshold: Share = Field(description="reference: least CAM score of foreground")
    background_threshold: Share = Field(description="reference: least background score of background")
    crf_confidence: Share = Field(description="reference: least CRF probability")
    crf_scale: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="size of the photo the CRF sees; 1: whole")
    padding: Literal["label", "ignore"] = Field("label", description="whether the padding of crops may be labelled")
    crf: CRF = Field(CRF(), description="CRF of Eq. 5")


class Energy(Section):
    """Dense energy loss, Eq. 10-14."""

    weight: NotNegative = Field(description="weight of the energy in the joint loss; 0: cross-entropy only")
    sigma_rgb: Positive = Field(15, description="grey levels, 0..255")
    sigma_xy: Positive = Field(100, description="pixels of the crop")
    scale: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="size at which the energy is computed, where grid is null"
    )
    grid: int | None = Field(
        None, ge=2, le=256, description="side of a fixed grid on which the energy is computed; null: scale"
    )
    form: Literal["reference", "paper"] = Field(description="reference: -S P (G P); paper: Eq. 12-13, j != i")
    gradient: Literal["reference", "exact"] = Field(description="the authors' formula or the true derivative")
    normalize: Literal["none", "row", "mean"] = Field(description="1/W of Eq. 11: by row, by the mean row sum, or none")
    include_self: bool = Field(description="whether j = i counts")
    gate: bool = Field(True, description="Eq. 14; false: every pixel counts in full, as in Tang et al. 2018")
    backend: Literal["auto", "lattice", "exact"] = Field("auto", description="Gaussian filter")
    ramp: NotNegative = Field(0, le=1, description="share of the steps over which the weight grows from 0")


class Losses(Section):
    """Loss terms of the one-step network, Eq. 8-9."""

    classification: Literal["multilabel-soft-margin", "softmax"] = Field(description="classification loss")
    cross_entropy: Literal["balanced", "mean", "sum"] = Field(
        description="balanced: background and foreground separately"
    )


class Network(Section):
    """A network: kind and its options."""

    backbone: Literal["resnet38", "mobilenet_v2", "resnet50", "vgg16", "resnet101"] = Field(description="backbone")
    options: dict[str, Any] = Field({}, description="keyword arguments of the network class")
    weights: str | None = Field(None, description="file with start weights; null: random or warm start")
    weights_format: Literal["torchvision", "reference", "rrm"] = Field("torchvision", description="layout of that file")
    start: str = Field(
        "random", description="what the table's column 'start_weights' says; random: there are no weights"
    )

    def check_start(self, key: str) -> None:
        """Refuse a name in the tables for weights that are not loaded, and weights without one.

        Args:
            key: of this section, where neither warm start nor classifier is loaded over its weights.

        Raises:
            ValueError: `weights` and `start` contradict each other.
        """
        if not self.weights and self.start != "random":
            raise ValueError(
                f"{key}.weights: expected the file of the start weights that tables will call {self.start!r}, got null:"
                " give its path, or set start to random"
            )
        if self.weights and self.start == "random":
            raise ValueError(
                f"{key}.start: expected what {self.weights} was trained on, for the tables, got random: name it,"
                " such as ImageNet"
            )


class LinearFit(Section):
    """Logistic regression on the frozen backbone's features of whole photos (`rrm.logistic`)."""

    scales: Scales = Field([0.75, 1.0, 1.25], description="scales of the photos")
    flip: bool = Field(True, description="the mirrored photos too")
    weight_decay: NotNegative = Field(1e-3, description="factor of the sum of squared weights")
    iterations: Count = Field(300, description="L-BFGS iterations at most")


class Classifier(Section):
    """Warm start of the classification branch (the authors start from such a classifier)."""

    enabled: bool = Field(True, description="false: one-step training starts from network.weights")
    loss: Literal["multilabel-soft-margin", "softmax"] = Field(
        "multilabel-soft-margin", description="classification loss"
    )
    linear: LinearFit | None = Field(
        None, description="fit the branch alone, on the frozen backbone of network.weights; null: train the network"
    )
    train: Training | None = Field(None, description="loop that trains the whole network; null where linear is given")

    @model_validator(mode="after")
    def _one_way(self) -> Classifier:
        if (self.linear is None) == (self.train is None):
            raise ValueError("expected one of linear and train, got both or none: set the other to null")
        return self


class OneStep(Section):
    """One-step RRM training (Algorithm 1)."""

    recipe: Literal["paper", "reference"] = Field("reference", description="defaults of every key below")
    network: Network = Field(description="backbone and heads")
    train: Training = Field(description="loop")
    cam: CAM = Field(description="class activation maps")
    mining: Mining = Field(description="reliable regions")
    losses: Losses = Field(description="loss terms")
    energy: Energy = Field(description="dense energy loss")

    @model_validator(mode="after")
    def _starts_as_it_says(self) -> OneStep:
        self.network.check_start("network")
        return self


class Ablation(Section):
    """Variants of the one-step network for Tables 1 and 2; all start from the same classifier."""

    ratios: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [],
        description="Table 1: shares of reliable pixels, each with cross-entropy and with the joint loss; []: no table",
    )
    pseudo_labels: bool = Field(
        False, description="Table 2: labels of the CAM alone and mined ones, each with both losses"
    )


class Inference(Section):
    """Views whose probabilities are averaged."""

    scales: Scales = Field([1.0], description="scales of the photo")
    flip: bool = Field(False, description="the mirrored photo too")
    merge: Literal["mean", "max"] = Field(
        "mean", description="mean of probabilities, or DeepLab-v2's maximum of scores"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="autocast on a GPU; the CPU uses float32"
    )


class RandomWalk(Section):
    """AffinityNet (Ahn and Kwak 2018): a random walk of the CAM's scores along affinities that a network learns."""

    radius: int = Field(5, ge=2, le=20, description="cells of the feature map; nearer pairs have an affinity")
    mining: Mining = Field(description="reliable labels of training batches that the affinities are learned from")
    train: Training = Field(description="loop of the affinity network, on the backbone of one_step")
    beta: Positive = Field(8, description="power of the affinities; larger: fewer ways out of a region")
    steps: int = Field(256, ge=0, le=65536, description="steps of the walk")


class PseudoMasks(Section):
    """Pseudo masks of the training photos, a set of them."""

    network: Literal["one_step", "classifier"] = Field(
        "one_step", description="whose scores they come from; the classifier has those of its CAM only"
    )
    source: Literal["segmentation", "cam", "average"] = Field(
        "segmentation", description="branch; average: mean of the segmentation softmax and the CAM's one-hot CRF label"
    )
    use_image_labels: bool = Field(True, description="classes that are not among the image's labels are removed")
    views: Inference = Field(Inference(), description="views of the segmentation branch")
    cam_scales: Scales = Field([0.5, 1, 1.5, 2], description="scales of the CAM (sources cam and average)")
    cam_exponent: Positive = Field(
        4, description="Eq. 4 exponent (sources cam and average); 16 where random_walk is given"
    )
    random_walk: RandomWalk | None = Field(
        None, description="AffinityNet's walk, between the CAM and the CRF; sets defaults of its own; null: none"
    )
    crf: CRF | None = Field(
        CRF(bilateral_sigma_xy=83, bilateral_sigma_rgb=5, bilateral_weight=4), description="null: no CRF"
    )
    crf_after_average: bool = Field(
        True, description="source average: CRF on the mean (true) or on the CAM only (false)"
    )
    confidence: Share = Field(0, description="pixels below it become 255")

    @model_validator(mode="after")
    def _branch_exists(self) -> PseudoMasks:
        if self.network == "classifier" and self.source != "cam":
            raise ValueError(
                f"source: expected cam for the network classifier, got {self.source}: it has no other branch"
            )
        if self.random_walk and self.source != "cam":
            raise ValueError(f"source: expected cam for a random walk, got {self.source}: it spreads the CAM's scores")
        return self


class StepTwo(Section):
    """Retraining of a segmentation network on pseudo masks, or on masks (a bound)."""

    recipe: Literal["deeplab-v2", "deeplab-largefov", "light"] = Field(description="defaults of every key below")
    network: Network = Field(description="network")
    warm_start: bool = Field(False, description="start from the one-step network's backbone and segmentation branch")
    cross_entropy: Literal["balanced", "mean", "sum"] = Field(description="cross-entropy")
    loss_scales: Scales = Field([1.0], description="DeepLab-v2: loss on these scales and on their maximum")
    energy: Energy | None = Field(None, description="dense energy loss on top; null: none")
    pseudo_masks: str = Field("one_step", description="name of the set of pseudo masks (step_two only)")
    labels: Literal["masks", "scribbles", "boxes"] = Field(
        "masks",
        description="what of the training masks is seen: all, a stroke through each object, or its box (bounds only)",
    )
    train: Training = Field(description="loop")
    views: Inference | None = Field(None, description="views of its predictions; null: those of evaluation")
    label: str = Field(description="row name in the tables")

    @model_validator(mode="after")
    def _starts_as_it_says(self) -> StepTwo:
        if not self.warm_start:
            self.network.check_start("network")
        return self


class Method(Section):
    """What all other methods have; `kind` gives the defaults of the other keys."""

    kind: str = Field(description="which method")
    label: str = Field(description="row name in the tables")
    network: Network | None = Field(None, description="backbone and heads; null: those of one_step")
    train: Training = Field(description="loop")


class EMAdapt(Method):
    """EM-Adapt (Papandreou et al. 2015)."""

    kind: Literal["em_adapt"] = Field(description="em_adapt: labels from the network's own scores, by adaptive biases")
    background: Share = Field(0.4, description="least share of a photo's pixels that are labelled background")
    foreground: Share = Field(0.2, description="least share of its pixels that each of its classes gets")
    passes: int = Field(5, ge=1, le=1000, description="how often at most the biases of a photo are gone through")


class Seeds(Section):
    """Seeds from the activation maps of the classifier that training starts from."""

    scales: Scales = Field([1.0], description="scales of the photo that are averaged")
    foreground: Share = Field(0.2, description="foreground: share of a class's maximum above which a pixel is a seed")
    background: Share = Field(0.05, description="background: share of the maximum that no class of the photo reaches")

    @model_validator(mode="after")
    def _ordered(self) -> Seeds:
        if self.background > self.foreground:
            raise ValueError(f"expected background at most foreground, got {self.background} and {self.foreground}")
        return self


class SEC(Method):
    """SEC (Kolesnikov and Lampert 2016)."""

    kind: Literal["sec"] = Field(description="sec: seeds, expansion by rank pooling, constraint to boundaries")
    seeds: Seeds = Field(Seeds(), description="where the classifier is sure")
    foreground_decay: Share = Field(0.996, description="d+ of the photo's classes, for a map of 41x41")
    absent_decay: Share = Field(0.999, description="d- of all other classes")
    background_decay: Share = Field(0.99, description="d_bg")
    crf: CRF = Field(CRF(), description="CRF of the boundary loss, for the crop; reduced with it to the map")


class DSRG(Method):
    """DSRG (Huang et al. 2018)."""

    kind: Literal["dsrg"] = Field(description="dsrg: seeds that grow, constraint to boundaries")
    seeds: Seeds = Field(Seeds(), description="where the classifier is sure")
    foreground_threshold: Share = Field(0.85, description="least probability of a class that grows")
    background_threshold: Share = Field(0.99, description="least probability of background that grows")
    crf: CRF = Field(CRF(), description="CRF of the boundary loss, for the crop; reduced with it to the map")


AnyMethod = Annotated[EMAdapt | SEC | DSRG, Field(discriminator="kind")]


class Evaluation(Section):
    """Prediction and its scoring."""

    views: Inference = Field(Inference(), description="views that are averaged")
    cam_exponent: Positive = Field(4, description="Eq. 4 exponent of the rows of the bare CAM")
    crf: CRF = Field(
        CRF(bilateral_sigma_xy=83, bilateral_sigma_rgb=5, bilateral_weight=4), description="CRF at test time"
    )
    submission_crf: bool = Field(True, description="archives of dataset.submission: after the CRF (true) or without it")


class Segment(Section):
    """Masks of photos, by the network of the first seed (`rrm.own_masks`)."""

    model: str = Field("one_step", description="one_step, or methods/, step_two/ or bounds/ and a name")
    photos: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="photos, folders and patterns; null: all photos of dataset.root"
    )
    image_labels: bool = Field(
        True, description="classes that are not among a photo's labels are ruled out, where it has any"
    )
    scales: Scales = Field([1.0], description="scales of the photo")
    flip: bool = Field(False, description="the mirrored photo too")
    crf: bool = Field(True, description="refine by the CRF at test time")
    write: Annotated[
        list[Literal["masks", "overlays", "polygons", "geojson", "rle", "probabilities"]], Field(min_length=1)
    ] = Field(["masks", "overlays"], description="what is written of each photo")

    @field_validator("write")
    @classmethod
    def _with_masks(cls, kinds: list[str]) -> list[str]:
        if "masks" not in kinds:
            raise ValueError(f"expected masks among them, got {kinds}: add it")
        return kinds


class Gallery(Section):
    """The page to look at a run."""

    photos: Count = Field(
        60, le=2000, description="photos of val that it shows at most: each takes up to 0.3 MB and as long as its CRFs"
    )


class Shards(Section):
    """Into how many jobs the photos of a stage are divided."""

    pseudo_masks: Count = Field(1, description="jobs that make a set of pseudo masks")
    predict: Count = Field(1, description="jobs that predict a split")
    evaluate: Count = Field(1, description="jobs that evaluate a split")


class Runtime(Section):
    """How to run; never changes what is computed, so no stage is re-run for it."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where there is one")
    processes: Count = Field(
        1, description="processes that a training job is spread over, one a GPU; each has its part of each batch"
    )
    threads: dict[str, Count] = Field(
        {}, description="threads by stage, of each process; 'default' for those not named"
    )
    workers: int = Field(0, ge=0, description="DataLoader workers of each process of a training job")
    crf_workers: int = Field(
        2, ge=0, description="processes that run CRFs of evaluation and pseudo masks; 0: in the stage's own"
    )
    compile: bool = Field(
        False,
        description="let torch.compile make the code of networks that are trained: slow at first, then perhaps faster",
    )
    preload: bool = Field(
        False,
        description="fork stages from a process with the libraries loaded: seconds less a job; on one Linux machine",
    )
    share_gpus: bool = Field(
        False, description="use a GPU that another job on this machine uses (true), or wait for a free one"
    )
    shards: Shards = Field(Shards(), description="jobs that share the photos of a stage; one number is for all three")
    log_seconds: Positive = Field(10, description="seconds between progress lines where there is no terminal")

    @field_validator("shards", mode="before", json_schema_input_type=Count | Shards)
    @classmethod
    def _one_number_for_all(cls, value: Any) -> Any:
        return dict.fromkeys(Shards.model_fields, value) if isinstance(value, int) else value


class Config(Section):
    """The whole configuration."""

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field([0], description="one run a seed")
    dataset: Dataset
    classifier: Classifier
    one_step: OneStep
    ablation: Ablation = Field(Ablation(), description="variants of one_step: Tables 1 and 2")
    pseudo_masks: dict[LabelledName, PseudoMasks] = Field(
        {"one_step": PseudoMasks()}, description="sets of pseudo masks of the training photos, by name"
    )
    step_two: dict[LabelledName, StepTwo] = Field({}, description="networks retrained on the pseudo masks")
    bounds: dict[LabelledName, StepTwo] = Field(
        {},
        description="networks trained on the training masks, or on scribbles or boxes derived from them: upper bounds",
    )
    methods: dict[LabelledName, AnyMethod] = Field(
        {}, description="other weakly supervised methods on the same parts, for rows of Tables 3 to 5"
    )
    cam_rows: list[Literal["predicted", "given"]] = Field(
        ["predicted", "given"],
        description="rows of the bare CAM: image labels predicted by the classification branch (as all other rows have"
        " it), or given",
    )
    evaluation: Evaluation
    segment: Segment | None = Field(None, description="masks and overlays of photos; null: none")
    gallery: Gallery = Field(Gallery(), description="the page to look at")
    runtime: Runtime = Field(Runtime())

    @field_validator("seeds", "cam_rows")
    @classmethod
    def _distinct(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) != len(values):
            raise ValueError(f"expected distinct values, got {values}")
        return values

    @model_validator(mode="after")
    def _named_masks_exist(self) -> Config:
        for name, section in self.step_two.items():
            if section.labels != "masks":
                raise ValueError(
                    f"step_two.{name}.labels: expected masks, got {section.labels}: networks that see labels derived "
                    "from masks stand in bounds"
                )
            if section.pseudo_masks not in self.pseudo_masks:
                raise ValueError(
                    f"step_two.{name}.pseudo_masks: expected one of {', '.join(self.pseudo_masks)}, got "
                    f"{section.pseudo_masks!r}: add the set or name another"
                )
        return self

    @model_validator(mode="after")
    def _methods_start_as_they_say(self) -> Config:
        for name, method in self.methods.items():
            if method.network and not self.classifier.enabled:
                method.network.check_start(f"methods.{name}.network")
        return self

    @model_validator(mode="after")
    def _seeds_have_a_classifier(self) -> Config:
        seeded = [name for name, method in self.methods.items() if isinstance(method, SEC | DSRG)]
        if seeded and not self.classifier.enabled:
            raise ValueError(
                f"methods: expected classifier.enabled for the seeds of {', '.join(seeded)}, got false: set it, or "
                "leave them out"
            )
        return self

    @model_validator(mode="after")
    def _masks_have_a_network(self) -> Config:
        used = dict.fromkeys(section.pseudo_masks for section in self.step_two.values())
        wrong = [name for name in used if self.pseudo_masks[name].network == "classifier"]
        if wrong and not self.classifier.enabled:
            raise ValueError(
                f"pseudo_masks.{wrong[0]}.network: expected one_step where classifier.enabled is false, got "
                "classifier: set it, or leave out the networks of step_two that are trained on these masks"
            )
        return self

    @model_validator(mode="after")
    def _processes_share_batches(self) -> Config:
        processes = self.runtime.processes
        wrong = [
            f"{name}.batch_size {loop.batch_size} (accumulate {loop.accumulate})"
            for name, loop in sections_of(Training, self)
            if processes > 1 and loop.batch_size % (processes * loop.accumulate)
        ]
        if wrong:
            raise ValueError(
                f"runtime.processes: expected batches that are multiples of processes * accumulate, got {processes} "
                f"processes and {', '.join(wrong)}: change one of them"
            )
        return self

    @model_validator(mode="after")
    def _nothing_asks_for_masks(self) -> Config:
        data = self.dataset
        asking = {"bounds": self.bounds, "dataset.test": data.test, "dataset.submission": data.submission,
                  "ablation.ratios": self.ablation.ratios, "ablation.pseudo_labels": self.ablation.pseudo_labels,
                  "dataset.kind": data.kind == "demo"}  # fmt: skip
        wrong = [name for name, given in asking.items() if given]
        if not data.masks and wrong:
            raise ValueError(
                f"dataset.masks: expected true for {', '.join(wrong)}, which need masks, got false: leave them out, or "
                "give masks"
            )
        return self

    @model_validator(mode="after")
    def _segmented_by_a_model_that_is_there(self) -> Config:
        groups: dict[str, Mapping[str, Any]] = {
            "methods": self.methods,
            "step_two": self.step_two,
            "bounds": self.bounds,
        }
        known = ["one_step", *(f"{group}/{name}" for group, entries in groups.items() for name in entries)]
        if self.segment and self.segment.model not in known:
            raise ValueError(
                f"segment.model: expected one of {', '.join(known)}, got {self.segment.model!r}: add it or name another"
            )
        if self.segment and not (self.segment.photos or self.dataset.root):
            raise ValueError("segment.photos: expected photos where dataset.root is null, got null: name them")
        return self

    @model_validator(mode="after")
    def _variants_differ(self) -> Config:
        wanted = bool(self.ablation.ratios) or self.ablation.pseudo_labels
        if wanted and (self.one_step.energy.weight == 0 or self.one_step.mining.rule == "cam"):
            raise ValueError(
                "ablation: expected one_step.energy.weight above 0 and a mining rule other than cam, from which the "
                "variants depart: change them, or leave ablation out"
            )
        return self


def sections_of(kind: type[AnySection], section: Any, name: str = "") -> Iterator[tuple[str, AnySection]]:
    """All sections of a kind within a section, such as training loops, by the names of their keys.

    Example:
        >>> [name for name, _ in sections_of(CRF, Evaluation())]
        ['crf']
    """
    if isinstance(section, kind):
        yield name, section
    entries = section if isinstance(section, Mapping) else dict(section) if isinstance(section, Section) else {}
    for key, value in entries.items():
        yield from sections_of(kind, value, f"{name}.{key}" if name else key)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` put over it, section by section.

    Example:
        >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
        {'a': {'b': 3, 'c': 2}}
    """
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _with_recipe(
    section: Any, recipes: Mapping[str, Mapping[str, Any]], default: str | None, key: str = "recipe"
) -> Any:
    """The section over its recipe's defaults; anything malformed is left for the validation to report."""
    if not isinstance(section, Mapping):
        return section
    recipe = section.get(key, default)
    return merge(recipes[recipe], section) if isinstance(recipe, str) and recipe in recipes else dict(section)


def _with_walk_recipe(section: Any) -> Any:
    """A set of pseudo masks over the defaults that go with a random walk, where it has one."""
    walks = isinstance(section, Mapping) and isinstance(section.get("random_walk"), Mapping)
    return merge(RANDOM_WALK_RECIPE, section) if walks else section


def _without_nulls(section: Any) -> Any:
    """Entries of a section with names, without those that are null: so a file takes out what another one has."""
    return {k: v for k, v in section.items() if v is not None} if isinstance(section, Mapping) else section


def _apply_recipes(raw: Mapping[str, Any]) -> dict[str, Any]:
    named = ("pseudo_masks", "methods", "step_two", "bounds")
    resolved = {key: _without_nulls(value) if key in named else value for key, value in raw.items()}
    if "one_step" in resolved:
        resolved["one_step"] = _with_recipe(resolved["one_step"], ONE_STEP_RECIPES, "reference")
    for group in ("step_two", "bounds"):
        if isinstance(resolved.get(group), Mapping):
            resolved[group] = {k: _with_recipe(v, NETWORK_RECIPES, None) for k, v in resolved[group].items()}
    if isinstance(resolved.get("pseudo_masks"), Mapping):
        resolved["pseudo_masks"] = {k: _with_walk_recipe(v) for k, v in resolved["pseudo_masks"].items()}
    if isinstance(resolved.get("methods"), Mapping):
        resolved["methods"] = {k: _with_recipe(v, METHOD_RECIPES, None, "kind") for k, v in resolved["methods"].items()}
    return resolved


def _path(location: tuple[int | str, ...]) -> list[str]:
    """The keys that lead to a fault; pydantic names the kind of a method among them."""
    parts = [str(part) for part in location]
    return parts[:2] + parts[3:] if parts[:1] == ["methods"] else parts


def _faults(error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors():
        key = ".".join(_path(fault["loc"])) or "config"
        if fault["type"] == "extra_forbidden":
            lines.append(f"{key}: expected a known key, got an unknown one: correct or remove it")
        elif fault["type"] == "missing":
            lines.append(f"{key}: expected a value, got none: add the key")
        elif fault["type"] == "string_unicode":
            lines.append(
                f"{key}: expected text, got half a character (an escape between \\ud800 and \\udfff): correct it"
            )
        elif fault["type"] == "value_error":
            lines.append(_own_fault(".".join(_path(fault["loc"])), str(fault["ctx"]["error"])))
        else:
            got = f", got {_shown(fault['input'])}" if fault["loc"] else ""  # no whole configuration
            lines.append(f"{key}: {fault['msg']}{got}")
    return lines


def _own_fault(section: str, message: str) -> str:
    """A fault that a validator of a section found: it may name a key of the section, and says what it got.

    Example:
        >>> _own_fault("dataset", "root: expected a folder, got null"), _own_fault("seeds", "expected one, got none")
        ('dataset.root: expected a folder, got null', 'seeds: expected one, got none')
    """
    names_key = re.match(r"[\w.]+: ", message)
    return f"{section}{'.' if names_key else ': '}{message}" if section else message


def _shown(value: Any) -> str:
    """A value as JSON, its beginning; what YAML has and JSON has not (dates as keys, endless numbers) by its type."""
    try:
        return json.dumps(value, default=str)[:80]
    except (TypeError, ValueError):
        return f"a value of type {type(value).__name__}"


def resolve(raw: Mapping[str, Any], source: str = "config") -> Config:
    """Validate a configuration mapping, recipes applied.

    Args:
        raw: the mapping, as read from YAML.
        source: named in the error.

    Raises:
        RRMErrors: with every mistake of the whole configuration at once: key, expected, got.

    Example:
        >>> resolve({"dataset": {"name": "x", "kind": "demo", "colour": 1}})
        Traceback (most recent call last):
        ...
        rrm.errors.RRMErrors: config: 4 fault(s)
          - dataset.colour: expected a known key, got an unknown one: correct or remove it
          - classifier: expected a value, got none: add the key
          - one_step: expected a value, got none: add the key
          - evaluation: expected a value, got none: add the key
    """
    try:
        return Config.model_validate(_apply_recipes(raw))
    except ValidationError as error:
        raise RRMErrors(source, _faults(error)) from None


class _Loader(yaml.SafeLoader):
    """Refuses values that lie too deep in each other when it comes to them."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > CONFIG_DEPTH:
            raise Refused(f"values more than {CONFIG_DEPTH} deep in each other")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _yaml(text: str) -> Any:
    """What a text in YAML says: plain values, no Python objects."""
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    if _values(node, {}) > CONFIG_NODES:
        raise Refused(f"more than {CONFIG_NODES} values, each alias (*name) counted with what it stands for")
    return loader.construct_document(node)


def _values(node: Any, known: dict[int, int]) -> int:
    """Number of values in a node, those behind aliases counted each time."""
    if id(node) not in known:
        known[id(node)] = CONFIG_NODES + 1  # while it is being counted: an alias in what it stands for
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        flat = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_values(each, known) for each in flat)
    return known[id(node)]


def load(*paths: str | Path) -> Config:
    """Read one or more YAML files, later ones over earlier ones, and validate the result.

    Raises:
        RRMErrors: unreadable file, not a mapping, or any mistake in the merged configuration.
    """
    raw: dict[str, Any] = {}
    for path in paths:
        try:
            content = _yaml(read_text(path, CONFIG_BYTES))
        except Exception as error:  # PyYAML raises whatever it meets in tagged values and dates
            raise RRMErrors(str(path), [f"expected a readable YAML file, got: {error}"]) from None
        if not isinstance(content, Mapping):
            raise RRMErrors(str(path), [f"expected a mapping of sections, got {type(content).__name__}"])
        raw = merge(raw, content)
    return resolve(raw, " + ".join(str(path) for path in paths))


def departures(section: OneStep | StepTwo | Method) -> list[str]:
    """What a section sets otherwise than its recipe, as `key=value`, in the order of the keys.

    Example:
        >>> from rrm.recipes import ONE_STEP_RECIPES
        >>> departures(OneStep(recipe="reference", **ONE_STEP_RECIPES["reference"]))
        []
    """
    key = "kind" if isinstance(section, Method) else "recipe"
    recipes = {OneStep: ONE_STEP_RECIPES, StepTwo: NETWORK_RECIPES}.get(type(section), METHOD_RECIPES)
    recipe = getattr(section, key)
    base = type(section).model_validate(merge(recipes[recipe], {key: recipe}))
    ours, theirs = flat(section.model_dump(mode="json")), flat(base.model_dump(mode="json"))
    skip = ("label", "network.weights", "network.start")
    return [f"{k}={v}" for k, v in ours.items() if theirs.get(k, "(unset)") != v and k not in skip]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a mapping of mappings by their keys, with dots between.

    Example:
        >>> flat({"train": {"steps": 3}, "scales": [1]})
        {'train.steps': 3, 'scales': [1]}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def json_schema() -> dict[str, Any]:
    """The JSON schema of the resolved configuration."""
    return Config.model_json_schema()
