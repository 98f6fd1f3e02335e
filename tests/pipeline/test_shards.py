"""Stages that work on a part of their photos: any number of parts makes the same file."""

from __future__ import annotations

from pathlib import Path

import pytest

from rrm.cli import main
from rrm.shards import shard_path
from tests.pipeline.conftest import Chain

MODEL = "step_two/vgg16"
STORES = {
    "predict": f"{MODEL}/probabilities_val.h5",
    "evaluate": f"{MODEL}/confusion_val.h5",
    "pseudo-masks": "pseudo_masks/one_step.h5",
}


def _run(chain: Chain, stage: str, out: Path, shard: str) -> int:
    options = {"predict": ("--model", MODEL, "--split", "val"), "evaluate": ("--split", "val"), "pseudo-masks": ()}
    inputs = {"photos": chain.photos}
    if stage == "evaluate":
        inputs |= {"masks": chain.folder / "masks_val.h5", "probabilities": chain.seed / STORES["predict"]}
    else:
        inputs["model"] = chain.weights(MODEL if stage == "predict" else "one_step")
    return chain.stage(stage, out, *options[stage], "--shard", shard, **inputs)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("stage", STORES)
def test_shards_are_merged_to_the_bytes_of_the_whole(finished: Chain, tmp_path: Path, stage: str, parts: int) -> None:
    for part in range(1, parts + 1):  # val has five photos, so some of seven shards have none
        assert _run(finished, stage, shard_path(tmp_path / "shards", part, parts), f"{part}/{parts}") == 0
    merged = tmp_path / "merged.h5"
    assert main(["merge", str(tmp_path / "shards"), "--shards", str(parts), "--out", str(merged)]) == 0
    assert merged.read_bytes() == (finished.seed / STORES[stage]).read_bytes()


def test_a_shard_that_cannot_be_is_one_line(
    finished: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(finished, "predict", tmp_path / "9of7.h5", "9/7") == 1
    assert "shard: expected K/N with 1 <= K <= N, such as 3/7, got '9/7'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
