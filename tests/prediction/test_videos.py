"""Videos: their frames, and `rrm segment` on them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rrm
from rrm.errors import RRMError
from rrm.videos import expected_frames, frames
from tests.prediction.conftest import made_photo

av = pytest.importorskip("av")
Segment = Callable[..., int]
COUNT, SIZE = 7, (48, 64)


def shown(number: int) -> Any:
    return made_photo(*SIZE, seed=100 + number)


def write_video(path: Path, rotation: int = 0, codec: str = "mpeg4") -> Path:
    """A video of `COUNT` frames of good quality."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(COUNT):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown(number), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "videos" / "clip.mp4")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_frames_are_those_of_the_video(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}")
    found = {number: photo() for number, photo in frames(path, every=3)}
    assert list(found) == [0, 3, 6]
    assert expected_frames(path, every=3) == 3 and expected_frames(path) == COUNT
    for number, photo in found.items():
        assert photo.shape == (*SIZE, 3) and photo.dtype == np.uint8 and photo.flags.c_contiguous
        distances = [np.abs(photo.astype(int) - shown(other)).mean() for other in range(COUNT)]
        assert int(np.argmin(distances)) == number and distances[number] < 10


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_frames_are_turned_as_the_video_says(tmp_path: Path, rotation: int) -> None:
    _, photo = next(frames(write_video(tmp_path / "turned.mov", rotation)))
    expected = np.rot90(shown(0), rotation // 90)  # counterclockwise
    assert photo().shape == expected.shape
    assert np.abs(photo().astype(int) - expected).mean() < 10


def test_a_video_becomes_photos_with_numbers(
    segment: Segment, video: Path, out: Path, segmenter: rrm.Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(made_photo(20, 20)).save(video.parent / "a.png")
    kinds = ("--write", "masks", "photos", "polygons", "rle")
    assert segment(video.parent, "--every", "3", *kinds) == 0
    assert names(out / "masks") == ["a.png", "clip/000000.png", "clip/000003.png", "clip/000006.png"]
    assert capsys.readouterr().out == f"{out}: 4 photos segmented, 0 were there already\n"
    frame = np.asarray(Image.open(out / "photos" / "clip" / "000003.png"))
    np.testing.assert_array_equal(frame, dict(frames(video))[3]())
    mask = np.asarray(Image.open(out / "masks" / "clip" / "000003.png"))
    np.testing.assert_array_equal(mask, segmenter.predict(frame, crf=False).labels)
    polygons = json.loads((out / "polygons" / "clip" / "000003.json").read_text())
    pointed = (out / "polygons" / "clip" / polygons["imagePath"]).resolve()
    assert pointed == (out / "photos" / "clip" / "000003.png").resolve()
    images = json.loads((out / "rle.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["a.png", *(f"clip/{number:06d}.png" for number in (0, 3, 6))]

    before = (out / "masks" / "clip" / "000003.png").stat().st_mtime_ns
    assert segment(video.parent, *kinds) == 0  # the other frames
    assert capsys.readouterr().out == f"{out}: 4 photos segmented, 4 were there already\n"
    assert (out / "masks" / "clip" / "000003.png").stat().st_mtime_ns == before and len(names(out / "masks")) == 8


def test_image_labels_of_a_video(segment: Segment, video: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,labels\nclip,\nclip/000004,cat dog\n")
    assert segment(video, "--labels", tmp_path / "labels.csv") == 0
    found = [bool(np.asarray(Image.open(path)).any()) for path in sorted((out / "masks" / "clip").iterdir())]
    assert found == [number == 4 for number in range(COUNT)]


def test_damaged_videos_are_listed_and_the_others_done(
    segment: Segment, video: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (video.parent / "cut.mp4").write_bytes(video.read_bytes()[:300])
    (video.parent / "text.mkv").write_text("no video")
    assert segment(video.parent, "--every", "6") == 1
    message = capsys.readouterr().err
    assert "2 photos segmented, 0 were there already; of the others: 2 fault(s)" in message
    assert all(f"{name}: expected a video that FFmpeg can decode, got" in message for name in ("cut.mp4", "text.mkv"))
    assert names(out / "masks") == ["clip/000000.png", "clip/000006.png"]


def test_frames_that_are_too_large(segment: Segment, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment(video, "--max-pixels", "3000") == 1
    assert "clip.mp4: expected at most 3000 pixels a frame, got 64 x 48" in capsys.readouterr().err


def test_names_of_frames_that_photos_have(
    segment: Segment, video: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (video.parent / "clip").mkdir()
    Image.fromarray(made_photo(20, 20)).save(video.parent / "clip" / "000003.png")
    assert segment(video.parent) == 1
    assert "clip/000003: expected one photo of this name, got" in capsys.readouterr().err
    assert Image.open(out / "masks" / "clip" / "000003.png").size == (64, 48)  # the frame's


def test_steps_that_are_refused(segment: Segment, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment(video, "--every", "0") == 1
    assert "every: expected at least 1 frame, got 0" in capsys.readouterr().err


def test_a_file_with_sound_alone(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(RRMError, match="expected a video with pictures, got sound alone"):
        next(frames(path))


def test_without_the_package(
    segment: Segment, video: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(made_photo(20, 20)).save(video.parent / "a.png")
    monkeypatch.setitem(sys.modules, "av", None)
    assert segment(video.parent) == 1
    message = capsys.readouterr().err
    assert 'clip.mp4: expected the package av to read videos, it is not installed: pip install "rrm[video]"' in message
    assert names(out / "masks") == ["a.png"]
