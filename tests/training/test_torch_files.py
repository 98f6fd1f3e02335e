"""Files of torch: the same bytes each time, nothing taken from damaged ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rrm.errors import RRMError
from rrm.torch_files import load_torch, save_torch

CONTENT: dict[str, Any] = {
    "step": 7,
    "weights": {"a": torch.arange(600.0).reshape(20, 30), "b": torch.arange(90), "c": torch.tensor(1.5)},
    "options": {"name": "ä", "values": [1, 2.5, None, True]},
}


def _same(got: Any, expected: Any = CONTENT) -> bool:
    if isinstance(expected, torch.Tensor):
        return got.dtype == expected.dtype and torch.equal(got, expected)
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(_same(got[key], value) for key, value in expected.items())
    return bool(got == expected)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_torch(tmp_path / "content.pth", CONTENT)
    return tmp_path / "content.pth"


def test_content_comes_back_and_is_the_same_bytes_under_any_name(path: Path, tmp_path: Path) -> None:
    assert _same(load_torch(path))
    save_torch(tmp_path / "another.pth", CONTENT)
    assert (tmp_path / "another.pth").read_bytes() == path.read_bytes()


def _one_line(path: Path) -> str:
    with pytest.raises(RRMError) as error:
        load_torch(path)
    assert str(error.value).startswith(f"{path}: expected a file that torch.save wrote, got ")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_cut_anywhere_are_refused(path: Path) -> None:
    size = path.stat().st_size
    for left in sorted({size - 1, 0, 1, 3, *np.random.default_rng(0).integers(0, size, 150).tolist()}, reverse=True):
        os.truncate(path, left)
        _one_line(path)


def test_a_bit_flipped_anywhere_is_noticed_or_harmless(path: Path) -> None:
    """In tensors and in what describes them it is noticed; padding and times of the archive mean nothing."""
    data, noticed = path.read_bytes(), 0
    for at in range(0, len(data), 11):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            assert _same(load_torch(path)), at
        except RRMError:
            noticed += 1
    tensors = 600 * 4 + 90 * 8
    assert noticed > tensors / 11


def test_nothing_is_unpickled(path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (path.with_name("trapped"),))

    torch.save({"weights": Trap()}, path)
    assert "which no tensor needs" in _one_line(path)
    assert not path.with_name("trapped").exists()
