"""Stores: round trip, determinism, refusal of every kind of wrong file, use from several processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from rrm.alive import name_of
from rrm.errors import RRMError
from rrm.store import FORMAT_VERSION, Sink, Store, StoreWriter, atomic_path

ARRAYS = {
    "uint8": np.arange(90 * 80 * 3, dtype=np.uint8).reshape(90, 80, 3),
    "bool": np.eye(80, dtype=bool),
    "float16": np.linspace(0, 1, 4 * 50 * 60).reshape(4, 50, 60).astype(np.float16),
    "float32": np.random.default_rng(0).random((3, 40, 41), dtype=np.float32),
    "int64": np.array([-1, 2**40]),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 7), np.uint8),
    "strided": np.arange(10000).reshape(100, 100)[::2, ::-1],
}


def write(path: Path, kind: str = "masks", records: int = 3, **options: object) -> Path:
    with StoreWriter(path, kind, {"b": 1, "a": [1.5, None]}, "c0de", {"split": "val"}, **options) as writer:  # type: ignore[arg-type]
        for number in range(records):
            writer.add(f"photo/{number} ä", {**ARRAYS, "number": np.array(number)})
    return path


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return write(tmp_path / "store.h5")


def one_line(error: pytest.ExceptionInfo[RRMError], path: Path) -> str:
    text = str(error.value)
    assert "\n" not in text and text.startswith(f"{path}: expected ") and ", got " in text
    assert text.rsplit(": ", 1)[1]  # what to do
    return text


# ---- round trip ----


@pytest.mark.parametrize("compression", ["gzip", None])
def test_arrays_come_back_as_they_were(tmp_path: Path, compression: str | None) -> None:
    store = Store(write(tmp_path / "store.h5", compression=compression), "masks")
    assert store.ids == ("photo/0 ä", "photo/1 ä", "photo/2 ä")
    assert (len(store), "photo/1 ä" in store, "other" in store) == (3, True, False)
    record = store["photo/2 ä"]
    assert record.pop("number") == 2
    assert list(record) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        assert record[name].dtype == expected.dtype and record[name].shape == expected.shape
        np.testing.assert_array_equal(record[name], expected)


def test_header_comes_back(stored: Path) -> None:
    store = Store(stored, ("photos", "masks"), code="c0de", config={"a": (1.5, None), "b": 1})
    assert (store.kind, store.code) == ("masks", "c0de")
    assert store.config == {"a": [1.5, None], "b": 1}
    assert store.attrs == {"split": "val"}


def test_a_store_without_records_is_complete(tmp_path: Path) -> None:
    assert Store(write(tmp_path / "store.h5", records=0), "masks").ids == ()


def test_same_input_gives_same_bytes_whatever_the_threads(tmp_path: Path) -> None:
    first = write(tmp_path / "first.h5").read_bytes()
    time.sleep(1.1)  # HDF5 times have a resolution of one second
    assert write(tmp_path / "second.h5").read_bytes() == first
    assert (
        write(tmp_path / "threads.h5", records=30, threads=3).read_bytes()
        == write(tmp_path / "one.h5", records=30).read_bytes()
    )


def test_chunks_are_what_hdf5_would_write(tmp_path: Path) -> None:
    array = np.linspace(0, 1, 3 * 40 * 50).reshape(3, 40, 50).astype(np.float16)
    with StoreWriter(tmp_path / "store.h5", "masks", {}, "") as writer:
        writer.add("a", {"large": array})
    with h5py.File(tmp_path / "hdf5.h5", "w") as file:
        file.create_dataset("a", data=array, chunks=array.shape, compression="gzip", compression_opts=1, shuffle=True)
        there = file["a"].id.read_direct_chunk((0, 0, 0))
    with h5py.File(tmp_path / "store.h5") as file:
        assert file["00000000.large"].id.read_direct_chunk((0, 0, 0)) == there


def test_packing_threads_end_where_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), StoreWriter(tmp_path / "store.h5", "masks", {}, "", threads=2) as writer:
        for record in range(9):
            writer.add(str(record), {"large": np.zeros((500, 500))})
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rrm-pack")]


def _packed_otherwise(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name in [name for name in file if file[name].compression]:
            array = file[name][...]
            del file[name]
            file.create_dataset(name, data=array, chunks=array.shape, compression="lzf", track_times=False)


@pytest.mark.parametrize("source", ["gzip", None, "lzf"])
def test_copied_records_are_the_same_bytes_and_checked(tmp_path: Path, source: str | None) -> None:
    arrays = ARRAYS | {
        "large": np.linspace(0, 1, 3 * 40 * 50).reshape(3, 40, 50).astype(np.float16),
        "bytes": np.arange(10_000, dtype=np.uint8).reshape(100, 100),
    }
    for name, compression in (("first.h5", source), ("added.h5", "gzip")):
        with StoreWriter(tmp_path / name, "masks", {}, "", compression=compression and "gzip") as writer:
            for record in ("a", "b"):
                writer.add(record, arrays)
    if source == "lzf":
        _packed_otherwise(tmp_path / "first.h5")
    with StoreWriter(tmp_path / "copied.h5", "masks", {}, "") as writer:
        for record in ("a", "b"):
            writer.copy(record, Store(tmp_path / "first.h5", "masks"))
    assert (tmp_path / "copied.h5").read_bytes() == (tmp_path / "added.h5").read_bytes()
    with h5py.File(tmp_path / "first.h5", "r+") as file:
        file["00000001.large"][0, 0, 0] = 7
    with pytest.raises(RRMError, match="damaged bytes"), StoreWriter(tmp_path / "bad.h5", "masks", {}, "") as writer:
        writer.copy("b", Store(tmp_path / "first.h5", "masks"))
    assert not (tmp_path / "bad.h5").exists()


def test_compression_pays_for_masks(tmp_path: Path) -> None:
    sizes = {}
    for compression in ("gzip", None):
        with StoreWriter(tmp_path / "masks.h5", "masks", {}, "", compression=compression) as writer:
            writer.add("a", {"mask": np.zeros((300, 400), np.uint8)})
        sizes[compression] = (tmp_path / "masks.h5").stat().st_size
    assert sizes["gzip"] * 10 < sizes[None]


# ---- writing ----


def test_nothing_appears_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "store.h5"
    with pytest.raises(ZeroDivisionError), StoreWriter(path, "masks", {}, "") as writer:
        writer.add("a", ARRAYS)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_old_file_stays_when_writing_fails(stored: Path) -> None:
    before = stored.read_bytes()
    with pytest.raises(ZeroDivisionError), StoreWriter(stored, "masks", {}, "") as writer:
        writer.add("a", ARRAYS)
        raise ZeroDivisionError
    assert stored.read_bytes() == before and len(list(stored.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([("a", {"x": np.zeros(1)}), ("a", {"x": np.zeros(1)})], "each id once"),
        ([("a", {})], "at least one array"),
        ([("a", {"x": np.array(["text"])})], "numbers or booleans"),
        ([("a", {"x": np.array([{}], dtype=object)})], "numbers or booleans"),
    ],
)
def test_bad_records_are_refused(tmp_path: Path, records: list[tuple[str, dict]], message: str) -> None:  # type: ignore[type-arg]
    path = tmp_path / "store.h5"
    with pytest.raises(RRMError, match=message), StoreWriter(path, "masks", {}, "") as writer:
        for name, arrays in records:
            writer.add(name, arrays)
    assert list(tmp_path.iterdir()) == []


def test_attrs_that_are_not_json_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError), StoreWriter(tmp_path / "s.h5", "masks", {}, "", {"x": object()}):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RRMError, match="config"):
        StoreWriter(tmp_path / "s.h5", "masks", {"x": object()}, "")


# ---- atomic_path ----


def test_atomic_path_names_the_process_and_keeps_the_suffix(tmp_path: Path) -> None:
    target = tmp_path / "new" / "figure.png"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".png"
        assert f"-{os.getpid()}-" in temporary.name and temporary.name.startswith(".")
        temporary.write_bytes(b"1")
        assert not target.exists()
    assert target.read_bytes() == b"1" and list(target.parent.iterdir()) == [target]


def test_atomic_path_wants_a_file(tmp_path: Path) -> None:
    with pytest.raises(RRMError, match="got none"), atomic_path(tmp_path / "x.csv"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_atomic_path_replaces_and_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "x.csv"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def _dead_process() -> str:
    """Name of a process of this machine that has ended."""
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    name = name_of(process.pid)
    process.join()
    return name


def test_files_of_dead_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    reborn = name_of(os.getppid()) + "9"  # another process has the number of one that has ended
    dead = [f".store.tmp-{_dead_process()}.h5", ".other.tmp-0123abcd-7-1.pth", f".x.tmp-{reborn}.h5"]
    others = [f".x.tmp-{name_of(os.getppid())}.h5", ".y.tmp-0123abcd-8-1.h5", ".z.tmp-notes.txt", "a.tmp-1.h5"]
    for name in dead + others:
        (tmp_path / name).write_text("half")
    an_hour_ago = time.time() - 3700
    os.utime(tmp_path / dead[1], (an_hour_ago, an_hour_ago))  # of another machine, whose processes nobody knows here
    with atomic_path(tmp_path / "store.h5") as temporary:
        temporary.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {*others, "store.h5"}


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_hdf5_writes_comes_after_the_record(
    tmp_path: Path, kind: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside HDF5 its exception would be printed and lost, and the record with it."""
    write_really = Sink.write

    def interrupted(sink: Sink, data: object) -> int:
        os.kill(os.getpid(), kind)
        return write_really(sink, data)

    def stop(number: int, frame: object) -> None:
        raise InterruptedError

    before = signal.signal(kind, stop)
    try:
        with StoreWriter(tmp_path / "store.h5", "masks", {}, "", compression=None) as writer:
            monkeypatch.setattr(Sink, "write", interrupted)
            with pytest.raises(InterruptedError):
                writer.add("a", {"mask": np.arange(100_000)})
            monkeypatch.undo()
            writer.add("b", {"mask": np.zeros(3)})
    finally:
        signal.signal(kind, before)
    np.testing.assert_array_equal(Store(tmp_path / "store.h5", "masks").read("a", "mask"), np.arange(100_000))


# ---- refusing ----


def test_files_truncated_anywhere_are_refused(stored: Path) -> None:
    data = stored.read_bytes()
    sizes = {*range(100), *np.random.default_rng(0).integers(0, len(data), 300).tolist(), len(data) - 1}
    for size in sorted(sizes, reverse=True):
        os.truncate(stored, size)
        with pytest.raises(RRMError) as error:
            Store(stored, "masks")
        text = one_line(error, stored)
        assert "truncated" in text or "not HDF5" in text


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path, got in ((tmp_path / "none.h5", "no file"), (tmp_path, "a folder")):
        with pytest.raises(RRMError) as error:
            Store(path, "masks")
        assert f"got {got}" in one_line(error, path)


def test_foreign_files(tmp_path: Path) -> None:
    text = tmp_path / "text.h5"
    text.write_text("not HDF5 at all, but longer than a signature")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weights"] = np.zeros(3)
        file.attrs["magic"] = "something else"
        file.attrs["odd"] = [1, 2, 3]
    for path, got in ((text, "not HDF5"), (tmp_path / "other.h5", "other origin")):
        with pytest.raises(RRMError) as error:
            Store(path, "masks")
        assert got in one_line(error, path)


@pytest.mark.parametrize(
    ("attribute", "value", "got"),
    [
        ("version", FORMAT_VERSION - 1, f"format version {FORMAT_VERSION - 1}"),
        ("version", FORMAT_VERSION + 1, f"format version {FORMAT_VERSION + 1}"),
        ("complete", 0, "broken off"),
        ("kind", np.bytes_("photos"), "a 'photos' store"),
        ("config", np.bytes_("{"), "damaged configuration"),
        ("code", np.bytes_("c0dd"), "damaged header or index"),
        ("code", "of any length", "damaged header or index"),
        ("kind", np.array([b"masks", b"photos"]), "a damaged header"),
        ("index_crc32", 1, "damaged header or index"),
    ],
)
def test_other_headers_are_refused(stored: Path, attribute: str, value: object, got: str) -> None:
    with h5py.File(stored, "r+") as file:
        file.attrs[attribute] = value
    with pytest.raises(RRMError) as error:
        Store(stored, "masks")
    assert got in one_line(error, stored)


def test_missing_index_is_refused(stored: Path) -> None:
    with h5py.File(stored, "r+") as file:
        del file["index"]
    with pytest.raises(RRMError) as error:
        Store(stored, "masks")
    assert "without a readable index" in one_line(error, stored)


def test_wrong_kind_names_all_that_would_do(stored: Path) -> None:
    with pytest.raises(RRMError) as error:
        Store(stored, ("photos", "pseudo_masks"))
    assert "expected a 'photos' or 'pseudo_masks' store, got a 'masks' store" in one_line(error, stored)


def test_other_code_or_config_is_refused(stored: Path) -> None:
    with pytest.raises(RRMError, match="code: expected 'new', got 'c0de'"):
        Store(stored, "masks", code="new")
    with pytest.raises(RRMError, match="config: expected"):
        Store(stored, "masks", config={"a": 1})


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "store.h5", compression=None)
    data = bytearray(path.read_bytes())
    at = data.find(ARRAYS["uint8"].tobytes())
    assert at > 0
    data[at + 1000] ^= 1
    path.write_bytes(data)
    store = Store(path, "masks")
    with pytest.raises(RRMError) as error:
        store.read("photo/0 ä", "uint8")
    assert "CRC-32" in one_line(error, path)
    np.testing.assert_array_equal(store.read("photo/1 ä", "uint8"), ARRAYS["uint8"])


def test_every_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    """Wherever one byte changes, the store is refused with an RRMError or reads what was written."""
    path = tmp_path / "store.h5"
    with StoreWriter(path, "masks", {}, "") as writer:
        writer.add("a", {"mask": np.arange(5000, dtype=np.uint16).reshape(50, 100)})
    data = path.read_bytes()
    refused = 0
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 0x10
        path.write_bytes(changed)
        try:
            store = Store(path, "masks")
            if store.ids == ("a",):
                np.testing.assert_array_equal(store.read("a", "mask").ravel(), np.arange(5000))
            store.close()
        except RRMError:
            refused += 1
    assert refused > len(data) / 7 / 10  # many bytes are unused: HDF5 leaves room in its tables


def test_unknown_ids_and_names(stored: Path) -> None:
    store = Store(stored, "masks")
    with pytest.raises(RRMError, match="expected an id of this store, got 'x'"):
        store["x"]
    with pytest.raises(RRMError, match="expected one of uint8, bool"):
        store.read("photo/0 ä", "x")


# ---- processes ----


def read_in_child(store: Store, queue: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    queue.put([float(store.read(name, "float32").sum()) for name in store.ids])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_can_read_an_open_store(stored: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    store, queue = Store(stored, "masks"), context.Queue()
    expected = [float(store.read(name, "float32").sum()) for name in store.ids]  # opens the handle here
    children = [context.Process(target=read_in_child, args=(store, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [expected, expected]
    for child in children:
        child.join(timeout=60)
    assert float(store.read(store.ids[0], "float32").sum()) == expected[0]


def test_pickle_leaves_the_handle_out(stored: Path) -> None:
    store = Store(stored, "masks")
    store.read(store.ids[0], "bool")
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read(copy.ids[0], "bool"), ARRAYS["bool"])


def test_one_record_alone_is_small_to_send_however_large_the_store(tmp_path: Path) -> None:
    sizes = []
    for records in (2, 500):
        path = tmp_path / f"{records}.h5"
        names = [f"photo{number}" for number in range(records)]
        with StoreWriter(path, "masks", {}, "", attrs={"splits": {"val": names}}) as writer:
            for number, name in enumerate(names):
                writer.add(name, {"mask": np.full((2, 2), number % 256, np.uint8)})
        one = Store(path, "masks").only(names[-1])
        sent = pickle.dumps(one)
        sizes.append(len(sent))
        for each in (one, pickle.loads(sent)):
            assert each.ids == (names[-1],) and names[0] not in each
            np.testing.assert_array_equal(each.read(names[-1], "mask"), (records - 1) % 256)
            with pytest.raises(RRMError, match="expected an id of this store, got 'photo0'"):
                each.read("photo0", "mask")
    assert sizes[1] < sizes[0] + 20
    with pytest.raises(RRMError, match="expected an id of this store, got 'other'"):
        Store(path, "masks").only("other")


def test_closed_stores_open_again(stored: Path) -> None:
    store = Store(stored, "masks")
    store.read(store.ids[0], "bool")
    store.close()
    store.close()
    np.testing.assert_array_equal(store.read(store.ids[0], "bool"), ARRAYS["bool"])


def test_reading_changes_nothing_and_needs_no_write_permission(stored: Path) -> None:
    before = stored.read_bytes()
    stored.chmod(0o444)
    stored.parent.chmod(0o555)
    try:
        Store(stored, "masks")[Store(stored, "masks").ids[0]]
    finally:
        stored.parent.chmod(0o755)
    assert stored.read_bytes() == before


def test_a_reader_survives_replacement_of_the_file(stored: Path, tmp_path: Path) -> None:
    store = Store(stored, "masks")
    store.read(store.ids[0], "bool")
    other = tmp_path / "copy.h5"
    shutil.copy(stored, other)
    os.replace(other, stored)
    np.testing.assert_array_equal(store.read(store.ids[1], "bool"), ARRAYS["bool"])
