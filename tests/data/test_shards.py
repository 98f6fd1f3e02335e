"""Shards of a store: what is merged is the whole, byte for byte, and what is not all of one whole is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrm.cli import main
from rrm.errors import RRMError
from rrm.shards import Shard, merge_shards, own_share, shard_path
from rrm.store import StoreWriter

IDS = [f"photo_ü{number}" for number in range(11)]
CONFIG, ATTRS = (
    {"split": "val", "views": {"scales": [1.0, 0.5]}},
    {"trained": {"b": 1, "a": None}, "classes": ["x", "é"]},
)


def _write(
    path: Path, shard: str | None, *, ids: Sequence[str] = IDS, written: Sequence[str] | None = None, **changed: Any
) -> None:
    share, attrs = own_share({"shard": shard}, ids, changed.get("attrs", ATTRS))
    kind, config, code = (changed.get(name, usual) for name, usual in USUAL.items())
    with StoreWriter(path, kind, config, code, attrs) as writer:
        for name in share if written is None else written:
            values = np.random.default_rng(IDS.index(name))
            large, small = values.random((3, 40, 50)).astype(np.float16), values.integers(0, 9, (2, 2))
            writer.add(name, {"probabilities": large, "another": small, "flag": np.array(True)})


USUAL = {"kind": "probabilities", "config": CONFIG, "code": "abc"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All of three shards."""
    for part in (1, 2, 3):
        _write(shard_path(tmp_path / "store.shards", part, 3), f"{part}/3")
    return tmp_path / "store.shards"


@pytest.mark.parametrize("total", [0, 1, 7, 100])
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 8])
def test_shards_cover_a_list_once_in_order_and_evenly(total: int, parts: int) -> None:
    shares = [Shard(part, parts).of(range(total)) for part in range(1, parts + 1)]
    assert [item for share in shares for item in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "-1/3", "1/x", "1/2/3", "1.0/2"])
def test_what_names_no_shard(text: str) -> None:
    with pytest.raises(RRMError, match=r"^shard: expected K/N with 1 <= K <= N"):
        Shard.parse(text)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 12])
def test_the_merged_store_is_the_whole_one(tmp_path: Path, parts: int) -> None:
    _write(tmp_path / "whole.h5", None)
    for part in range(1, parts + 1):
        _write(shard_path(tmp_path / "shards", part, parts), f"{part}/{parts}")
    merge_shards(tmp_path / "shards", parts, tmp_path / "merged.h5")
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def _copied(path: Path) -> None:
    shutil.copyfile(path.with_name("1of3.h5"), path)


def _lost_a_page(path: Path) -> None:
    """A page of zeros in the middle: more than HDF5 leaves unused between arrays."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, r"expected 3 shards, 1 missing \(2of3.h5\): run them"),
    "whole": (lambda path: _write(path, None), "expected shard 2 of 3, got a whole store"),
    "overlapping": (_copied, "expected shard 2 of 3, got 1 of 3"),
    "of other shards": (lambda path: _write(path, "2/4"), "expected shard 2 of 3, got 2 of 4"),
    "incomplete": (lambda path: _write(path, "2/3", written=IDS[3:6]), "expected 4 photos, got 3"),
    "configuration": (lambda path: _write(path, "2/3", config={"split": "test"}), "expected the configuration of 1of3"),
    "code": (lambda path: _write(path, "2/3", code="abd"), "expected the code of 1of3"),
    "kind": (lambda path: _write(path, "2/3", kind="confusion"), "expected the kind of 1of3"),
    "weights": (lambda path: _write(path, "2/3", attrs={**ATTRS, "trained": {}}), "expected the attributes of 1of3"),
    "list": (lambda path: _write(path, "2/3", ids=IDS[::-1]), "expected the list of photos of 1of3"),
    "other photos": (lambda path: _write(path, "2/3", written=IDS[:4]), "expected the photos of the list in order"),
    "damaged": (_lost_a_page, "2of3.h5: expected a 'probabilities'"),
    "foreign": (lambda path: path.write_text("no store"), "got a file that is not HDF5"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_all_of_one_whole_is_one_line(
    folder: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    harm, message = FAULTS[fault]
    harm(shard_path(folder, 2, 3))
    with pytest.raises(RRMError, match=message) as error:
        merge_shards(folder, 3, tmp_path / "merged.h5")
    assert "\n" not in str(error.value)
    assert main(["merge", str(folder), "--shards", "3", "--out", str(tmp_path / "merged.h5")]) == 1
    assert "rrm merge: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["store.shards"]


def test_a_number_of_shards_is_needed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RRMError, match="shards: expected 1 or more, got 0"):
        merge_shards(folder, 0, tmp_path / "merged.h5")
