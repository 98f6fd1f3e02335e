"""What is planned for a data set with photos whose masks are not public."""

from __future__ import annotations

from typing import Any

from tests.workflow.project import Project, small_config

SUBMITTED = ("cam/predicted", "one_step", "methods/em_adapt", "step_two/plain", "step_two/warm")
ARCHIVES = {f"mine/seed0/{model}/submission.tar.gz" for model in SUBMITTED}
TABLES = {"table3.csv", "table4.csv", "table5.csv", "comparisons.csv"}


def voc_config(**dataset: Any) -> dict[str, Any]:
    """The small configuration on a data set in VOC layout, whose photos planning does not look at."""
    config = small_config()
    config["dataset"] = {"kind": "voc", "name": "mine", "root": "voc", "submission": "test", **dataset}
    return config


def _make_by_hand(project: Project) -> set[str]:
    outputs = project.planned()
    for output in outputs:
        path = project.root / "results" / output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made by hand")
    assert project.snakemake("--touch", "--forceall").returncode == 0
    assert project.planned() == set()
    return outputs


def test_archives_are_made_of_models_that_need_nothing_but_photos(clone: Project) -> None:
    clone.configure(voc_config())
    planned = clone.planned()
    assert {output for output in planned if output.endswith(".tar.gz")} == ARCHIVES
    predicted = {f"mine/seed0/{model}/probabilities_submission.h5" for model in SUBMITTED}
    assert {output for output in planned if "submission" in output} == ARCHIVES | predicted
    clone.configure(voc_config(submission=None))
    assert planned - clone.planned() == ARCHIVES | predicted


def test_changes_make_archives_again_where_they_concern_them(clone: Project) -> None:
    lists = clone.root / "voc" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    lists.joinpath("test.txt").write_text("a\n")
    config = voc_config()
    clone.configure(config)
    everything = _make_by_hand(clone)
    config["evaluation"]["submission_crf"] = False
    clone.configure(config)
    assert {output for output in clone.planned() if not output.endswith(".png")} == ARCHIVES | TABLES
    clone.configure(voc_config())
    lists.joinpath("test.txt").write_text("a\nb\n")
    assert clone.planned() == everything
    lists.joinpath("test.txt").write_text("a\n")
    config = voc_config()
    config["one_step"]["train"]["steps"] += 1
    clone.configure(config)
    assert clone.snakemake("--cleanup-metadata", "results/mine/seed0/one_step/weights.pth").returncode == 0
    clone.root.joinpath("results/mine/seed0/one_step/weights.pth").unlink()  # as when its training was stopped
    archive = "results/mine/seed0/step_two/plain/submission.tar.gz"
    stale = {"mine/seed0/one_step/weights.pth", "mine/seed0/pseudo_masks/one_step.h5", archive[8:]}
    assert stale <= clone.planned(archive)
