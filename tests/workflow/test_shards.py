"""Stages in shards: how many there are re-runs nothing, shards that are done are kept, results are the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rrm.config import merge
from tests.workflow.project import REPOSITORY, Project, clone_into, small_config

CONFUSION = "demo/seed0/one_step/confusion_val.h5"


def _config(**sections: Any) -> dict[str, Any]:
    return merge(small_config(), sections)


@pytest.mark.parametrize("shards", [2, {"predict": 3, "pseudo_masks": 7}], ids=["one number", "by stage"])
def test_shards_of_what_is_done_replan_nothing(finished: Project, shards: Any) -> None:
    finished.configure(_config(runtime={"shards": shards}))
    assert finished.planned() == set()


def test_shards_that_are_done_are_kept_and_those_of_other_options_not_taken(finished: Project) -> None:
    crf, target = {"iterations": 7}, f"results/{CONFUSION}"
    finished.configure(_config(runtime={"shards": {"evaluate": 3}}, evaluation={"crf": crf}))
    planned = finished.planned(target)
    shards = sorted(planned - {CONFUSION})
    assert [Path(shard).name for shard in shards] == ["1of3.h5", "2of3.h5", "3of3.h5"]
    for shard in shards[:2]:
        path = finished.root / "results" / shard
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made by hand")
    assert finished.planned(target) == {CONFUSION, shards[2]}
    finished.configure(_config(runtime={"shards": {"evaluate": 3}}, evaluation={"crf": {"iterations": 8}}))
    others = finished.planned(target)
    assert len(others) == 4
    assert others & planned == {CONFUSION}


def test_newer_weights_are_predicted_with_in_shards(finished: Project) -> None:
    finished.configure(_config(runtime={"shards": {"predict": 2}}))
    finished.root.joinpath("results/demo/seed0/one_step/weights.pth").write_text("made anew")
    planned = finished.planned(f"results/{CONFUSION}")
    assert {Path(output).name for output in planned} == {
        *("1of2.h5", "2of2.h5", "probabilities_val.h5", "confusion_val.h5")
    }


def _tiny(shards: int) -> dict[str, Any]:
    files = (REPOSITORY / "config.yaml", REPOSITORY / "tests" / "tiny.yaml")
    demo, tiny = (yaml.safe_load(path.read_text()) for path in files)
    return merge(merge(demo, tiny), {"runtime": {"shards": shards}})


@pytest.mark.timeout(900)
def test_a_run_in_shards_makes_the_same_files(tmp_path: Path) -> None:
    project, seed = clone_into(tmp_path), "results/tiny/seed0"
    stores = (f"{seed}/one_step/probabilities_val.h5", f"{seed}/one_step/confusion_val.h5")
    targets = (*stores, f"{seed}/pseudo_masks/one_step.h5")
    project.configure(_tiny(3))
    done = project.snakemake(*targets, "--quiet", "all")
    assert done.returncode == 0, done.stdout + done.stderr
    in_shards = [(project.root / target).read_bytes() for target in targets]
    assert not list(project.root.glob("results/**/*of3.h5"))
    assert len(list(project.root.glob("results/tiny/logs/**/*of3.log"))) == 9
    for shards in (7, 1):
        project.configure(_tiny(shards))
        assert project.planned(*targets) == set()
    again = project.snakemake(*targets, "--quiet", "all", "--forcerun", "predict", "evaluate", "pseudo_masks")
    assert again.returncode == 0, again.stdout + again.stderr
    assert [(project.root / target).read_bytes() for target in targets] == in_shards
