"""Stage `comparisons`: every "A above B" that the paper claims, tested on this run's photos."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from rrm.config import Config
from rrm.pipeline import evaluated_splits, masks_section, models, variant
from rrm.significance import paired_difference
from rrm.stages.call import Call
from rrm.stages.measured import read_measured
from rrm.tables import write_table


def claims(config: Config) -> Iterator[tuple[str, str, str, list[str]]]:
    """Claim, the model that should be above, the one below, and the splits that it is looked at on."""
    splits, ratio = evaluated_splits(config), config.one_step.mining.ratio

    def of(labels: str, loss: str) -> str:
        return variant(config, labels, ratio, loss)

    if config.ablation.pseudo_labels:
        yield "Table 2: joint loss above cross-entropy, RRM labels", of("rrm", "joint"), of("rrm", "ce"), ["val"]
        yield "Table 2: joint loss above cross-entropy, CAM labels", of("cam", "joint"), of("cam", "ce"), ["val"]
        yield "Table 2: RRM labels above CAM labels, cross-entropy", of("rrm", "ce"), of("cam", "ce"), ["val"]
        yield "Table 2: RRM labels above CAM labels, joint loss", of("rrm", "joint"), of("cam", "joint"), ["val"]
    yield from _ratios(config)
    if "cam/predicted" in models(config):
        yield "Table 5: one-step above the CAM of its own branch", "one_step", "cam/predicted", splits
    for name, method in config.methods.items():
        yield f"Table 5: one-step above {method.label}", "one_step", f"methods/{name}", splits
    yield from _second_step(config, splits)


def _ratios(config: Config) -> Iterator[tuple[str, str, str, list[str]]]:
    """Claims of Table 1: the joint loss helps at each ratio, and with it each ratio between the ends is above both."""
    ratios = sorted(config.ablation.ratios)
    for ratio in ratios:
        joint, ce = (variant(config, "rrm", ratio, loss) for loss in ("joint", "ce"))
        yield f"Table 1: joint loss above cross-entropy, ratio {ratio:g}", joint, ce, ["val"]
    for middle in ratios[1:-1]:
        for end in (ratios[0], ratios[-1]):
            above, below = (variant(config, "rrm", ratio, "joint") for ratio in (middle, end))
            yield f"Table 1: ratio {middle:g} above {end:g}, joint loss", above, below, ["val"]


def _second_step(config: Config, splits: list[str]) -> Iterator[tuple[str, str, str, list[str]]]:
    """Claims on step two: above one-step, and above the same network on masks of others."""
    own = {name: section for name, section in config.step_two.items() if _is_rrm(config, section.pseudo_masks)}
    for name in own:
        yield "Table 5: two-step above one-step", f"step_two/{name}", "one_step", splits
    for other in (name for name in config.step_two if name not in own):
        for name, section in own.items():
            if section.network == config.step_two[other].network:
                claim = f"Table 5: RRM's masks above those of {config.step_two[other].label}"
                yield claim, f"step_two/{name}", f"step_two/{other}", splits


def _is_rrm(config: Config, masks: str) -> bool:
    section = masks_section(config, masks)
    return section.network == "one_step" and section.source != "cam"


def run(call: Call) -> None:
    """Write the table: a row a claim, split and CRF."""
    measured, rows = read_measured(call), []
    for claim, above, below, splits in claims(measured.config):
        for split in splits:
            for kind, crf in (("crf", "yes"), ("plain", "no")):
                better, worse = (measured.matrices(model, split, kind) for model in (above, below))
                found = paired_difference(better, worse)
                figures = {"difference": found.value, "low": found.low, "high": found.high}
                rows.append(
                    {"claim": claim, "above": above, "below": below, "split": split, "crf": crf}
                    | {name: f"{100 * value:.2f}" for name, value in figures.items()}
                    | {"p": f"{found.p:.4f}", "seeds": str(len(better)), "images": str(len(better[0]))}
                )
    write_table(call.output, pd.DataFrame(rows))
