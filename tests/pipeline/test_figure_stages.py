"""The figures of a tiny run: files, texts in them, refusals; what is drawn is what was scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rrm.config import load
from rrm.figures import label_panel
from rrm.metrics import confusion_matrix, scores_of
from rrm.pipeline import stage_options
from rrm.stages.doubt import doubt
from rrm.stages.drawn import Scene, predicted
from rrm.stages.failures import best_model
from rrm.stages.figure3 import mined
from rrm.stages.figure4 import Models
from rrm.stages.label_quality import STEPS
from rrm.stages.photo_facts import seen_classes
from rrm.stages.trained import load_trained
from rrm.store import Store
from rrm.tables import scores_of_store
from tests.figures.made_gallery import shown_on
from tests.pipeline.conftest import CONFIG, Chain

DRAWN = ("methods/em_adapt", "one_step", "step_two/vgg16", "step_two/resnet101")


def draw(chain: Chain, figure: str, out: Path, *extra: str, **changed: Path) -> int:
    """Call the stage of a figure."""
    inputs = {"photos": chain.photos, "masks": chain.folder / "masks_val.h5"}
    if figure in ("figure2", "figure3", "label-quality"):
        inputs |= {"model": chain.weights("one_step"), "confusion": chain.seed / "one_step" / "confusion_val.h5"}
    else:
        for kind in ("probabilities", "confusion"):
            inputs |= {f"{kind}:{model}": chain.seed / model / f"{kind}_val.h5" for model in DRAWN}
    return chain.stage(figure, out, *extra, **{**inputs, **changed})


def draw_gallery(chain: Chain, out: Path, *extra: str, truth: bool = True, **changed: Path) -> int:
    """Call the stage of the page, with or without masks and matrices."""
    inputs = {"photos": chain.photos, "model": chain.weights("one_step"), "masks_model": chain.weights("one_step")}
    inputs |= {f"probabilities:{model}": chain.seed / model / "probabilities_val.h5" for model in DRAWN}
    inputs |= {f"weights:{model}": chain.weights(model) for model in DRAWN}
    if truth:
        inputs |= {f"confusion:{model}": chain.seed / model / "confusion_val.h5" for model in DRAWN}
        inputs["masks"] = chain.folder / "masks_val.h5"
    return chain.stage("gallery", out, *extra, **{**inputs, **changed})


def over(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return ["--config", *CONFIG, str(path)]


@pytest.mark.parametrize("figure", ["figure2", "figure3", "figure4", "failures"])
def test_figures_are_reproducible_and_say_what_they_show(finished: Chain, tmp_path: Path, figure: str) -> None:
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path in paths:
        assert draw(finished, figure, path) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as image:
        text: dict[str, str] = image.text  # type: ignore[attr-defined]
        assert image.width <= 2100 and image.height <= 2700
    assert set(text) == {"Title", "Description", "Options", "Code"}
    assert "Data set tiny, val, seed 0" in text["Description"] and "mIoU" in text["Description"]
    assert str(finished.folder) not in str(text)


@pytest.mark.parametrize("rule", ["reference", "cam"])
def test_any_mining_rule_is_refused_unless_trained_so(
    finished: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str
) -> None:
    extra = over(tmp_path / "rule.yaml", f"one_step: {{mining: {{rule: {rule}}}}}\n")
    assert draw(finished, "figure3", tmp_path / "out.png", *extra) == 1
    assert "expected the network of this configuration" in capsys.readouterr().err


def test_only_one_step_is_enough(finished: Chain, tmp_path: Path) -> None:
    config = load(*CONFIG)
    stores = {"one_step": Store(finished.seed / "one_step" / "confusion_val.h5", "confusion")}
    assert best_model(Models(config, stores, {})) == "one_step"


def test_the_best_two_step_model_is_the_one_with_the_highest_score(finished: Chain) -> None:
    stores = {name: Store(finished.seed / name / "confusion_val.h5", "confusion") for name in DRAWN}
    scores = {name: scores_of_store(store, "crf").mean_iou for name, store in stores.items()}
    best = best_model(Models(load(*CONFIG), stores, {}))
    assert best != "one_step" and scores[best] == max(scores[name] for name in DRAWN[1:])


def test_what_is_drawn_is_what_was_scored(finished: Chain) -> None:
    config = load(*CONFIG)
    confusion = Store(finished.seed / "one_step" / "confusion_val.h5", "confusion")
    masks = Store(finished.folder / "masks_val.h5", "masks")
    scene = Scene(Store(finished.photos, "photos"), masks, confusion)
    probabilities = Store(finished.seed / "one_step" / "probabilities_val.h5", "probabilities")
    labels_of = predicted(scene.photos, probabilities, config.evaluation.crf.model_dump())
    for name in scene.chosen(2):
        labels = labels_of(name)
        panel = label_panel(labels)
        np.testing.assert_array_equal(panel.labels, labels)
        matrix = confusion_matrix(labels, scene.mask(name), len(scene.classes))
        np.testing.assert_array_equal(matrix, confusion.read(name, "crf"))


def test_a_photo_without_image_labels_takes_those_of_its_mask(finished: Chain) -> None:
    confusion = Store(finished.seed / "one_step" / "confusion_val.h5", "confusion")
    masks, photos = Store(finished.folder / "masks_val.h5", "masks"), Store(finished.photos, "photos")
    scene = Scene(photos, masks, confusion)
    name = scene.chosen(1)[0]
    known = scene.present(name)
    photos.names = lambda record: ("image", "size")  # type: ignore[method-assign]
    np.testing.assert_array_equal(scene.present(name), known)


def test_the_gallery_shows_what_was_scored(finished: Chain, tmp_path: Path) -> None:
    page = tmp_path / "gallery" / "index.html"
    assert draw_gallery(finished, page) == 0
    data, confusions = shown_on(page), {m: Store(finished.seed / m / "confusion_val.h5", "confusion") for m in DRAWN}
    masks, photos = Store(finished.folder / "masks_val.h5", "masks"), Store(finished.photos, "photos")
    scene, one_step = Scene(photos, masks, confusions["one_step"]), stage_options(load(*CONFIG), "gallery")["one_step"]
    assert [each["name"] for each in data["photos"]] == scene.chosen(60) and len(data["photos"]) > 2
    network = load_trained(finished.weights("one_step"), "cpu").network
    for photo in data["photos"]:
        name = photo["name"]
        pictures = {layer: Image.open(page.parent / path) for layer, path in photo["images"].items()}
        np.testing.assert_array_equal(np.asarray(pictures["truth"]), scene.mask(name))
        steps = mined(scene.photo(name), scene.present(name), network, one_step, "cpu")
        np.testing.assert_array_equal(np.asarray(pictures["regions"]), steps.final[0].numpy())
        for model in DRAWN:
            matrix = confusions[model].read(name, "crf")
            seen = confusion_matrix(np.asarray(pictures[model]), scene.mask(name), len(scene.classes))
            np.testing.assert_array_equal(seen, matrix)
            assert photo["scores"][model]["mean"] == pytest.approx(scores_of(matrix).mean_iou, rel=1e-3)
        allowed = {0, *photo["given"]}
        assert set(np.unique(np.asarray(pictures["pseudo"]))) <= allowed
    for model in data["models"]:
        assert model["mean"] == pytest.approx(scores_of_store(confusions[model["id"]], "crf").mean_iou, rel=1e-3)
        assert np.sum(model["confusion"]) == sum(confusions[model["id"]].read(n, "crf").sum() for n in masks.ids)
    assert [each["name"] for each in data["training"]][:2] == ["EM-Adapt", "RRM one-step"]


def test_the_gallery_of_photos_without_truth(finished: Chain, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    extra = over(tmp_path / "few.yaml", "gallery: {photos: 3}\n")
    assert draw_gallery(finished, page, *extra, truth=False) == 0
    data = shown_on(page)
    assert not data["truth"] and len(data["photos"]) == 3 and "truth" not in data["photos"][0]["images"]
    store, photos = (
        Store(finished.seed / "one_step" / "probabilities_val.h5", "probabilities"),
        Store(finished.photos, "photos"),
    )
    for photo in data["photos"]:
        facts = seen_classes(store.read(photo["name"], "probabilities"))
        expected = doubt(facts | {"present": photos.read(photo["name"], "present")})
        assert photo["scores"]["one_step"] == {"doubt": pytest.approx(expected, rel=1e-2)}
    assert "mean" not in data["models"][0] and {"photo", "cam", "regions", "pseudo"} <= set(data["photos"][0]["images"])
    other = finished.seed / "step_two" / "vgg16" / "probabilities_val.h5"
    assert draw_gallery(finished, page, truth=False, **{"probabilities:one_step": other}) == 1
    assert shown_on(page) == data


def test_photos_that_were_trained_on_are_shown_where_there_is_no_truth(
    finished: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, trained_on = tmp_path / "index.html", {}
    for model in DRAWN:
        trained_on[f"train:{model}"] = tmp_path / f"{model.replace('/', '-')}.h5"
        inputs = {"photos": finished.photos, "model": finished.weights(model)}
        what = ["--model", model, "--split", "train"]
        assert finished.stage("predict", trained_on[f"train:{model}"], *what, **inputs) == 0
    assert draw_gallery(finished, page, truth=False, **trained_on) == 0
    data = shown_on(page)
    store = Store(trained_on["train:one_step"], "probabilities")
    assert data["photosOf"]["train"] == len(store.ids)
    seen = [photo for photo in data["photos"] if photo["split"] == "train"]
    assert {photo["name"] for photo in seen} <= set(store.ids) and 0 < len(seen) < len(data["photos"])
    present = Store(finished.photos, "photos").read(seen[0]["name"], "present")
    facts = seen_classes(store.read(seen[0]["name"], "probabilities")) | {"present": present}
    assert seen[0]["scores"]["one_step"]["doubt"] == pytest.approx(doubt(facts), rel=1e-2)
    swapped = {"train:one_step": trained_on[f"train:{DRAWN[-1]}"]}
    assert draw_gallery(finished, page, truth=False, **trained_on | swapped) == 1
    assert "expected predictions of the network that" in capsys.readouterr().err
    del trained_on["train:one_step"]
    assert draw_gallery(finished, page, truth=False, **trained_on) == 1
    assert "train:one_step" in capsys.readouterr().err
    assert shown_on(page) == data


def test_training_masks_and_foreign_files_are_refused(
    finished: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    assert draw(finished, "figure3", out, masks=finished.folder / "masks_train.h5") == 1
    assert "expected no training mask" in capsys.readouterr().err
    other = finished.seed / "step_two" / "vgg16" / "confusion_val.h5"
    assert draw(finished, "figure2", out, confusion=other) == 1
    assert "expected the network of this configuration" in capsys.readouterr().err
    assert draw(finished, "figure4", out, **{"confusion:one_step": other}) == 1
    assert "made with another configuration" in capsys.readouterr().err
    swapped = finished.seed / "step_two" / "vgg16" / "probabilities_val.h5"
    assert draw(finished, "figure4", out, **{"probabilities:one_step": swapped}) == 1
    assert "expected the probabilities that" in capsys.readouterr().err
    assert not out.exists()


def test_label_quality_counts_what_figure_3_shows(finished: Chain, tmp_path: Path) -> None:
    out = tmp_path / "label_quality.csv"
    assert draw(finished, "label-quality", out) == 0
    table = pd.read_csv(out)
    assert list(table.labels.unique()) == list(STEPS)
    assert (table.groupby("labels")["class"].count() == 7).all()
    scene = Scene(
        Store(finished.photos, "photos"),
        Store(finished.folder / "masks_val.h5", "masks"),
        Store(finished.seed / "one_step" / "confusion_val.h5", "confusion"),
    )
    one_step = stage_options(load(*CONFIG), "label-quality")["one_step"]
    network = load_trained(finished.weights("one_step"), "cpu").network
    kept = right = pixels = 0
    for name in scene.masks.ids:
        labels = mined(scene.photo(name), scene.present(name), network, one_step, "cpu").final[0].numpy()
        mask = scene.mask(name)
        known = mask != 255
        pixels += known.sum()
        kept += (known & (labels != 255)).sum()
        right += (known & (labels == mask)).sum()
    row = table[(table.labels == "reliable label") & (table["class"] == "all")].iloc[0]
    assert row.kept == pytest.approx(100 * kept / pixels, abs=0.006)
    assert row.recall == pytest.approx(100 * right / pixels, abs=0.006)
    assert row.precision == pytest.approx(100 * right / kept, abs=0.006)
