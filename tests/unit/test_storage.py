from __future__ import annotations

import json
import os

import pytest
import torch

from opsin import storage
from opsin.errors import StorageError

FILES = {"a.bin": bytes(range(256)) * 10, "b.json": b'{"x": 1}'}


def test_a_folder_comes_back_as_written_and_replaces_the_older_one(tmp_path):
    folder = tmp_path / "deep" / "state"
    storage.write_folder(folder, {"old": b"1"})
    storage.write_folder(folder, FILES)
    assert storage.read_folder(folder) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["state"]


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path):
    folder = tmp_path / "state"
    storage.write_folder(folder, FILES)
    for path in folder.iterdir():
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), max(1, len(whole) // 40) * 8 + 3):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(StorageError, match=path.name if path.name != storage.MANIFEST else str(folder)):
                storage.read_folder(folder)
        for length in range(0, len(whole), max(1, len(whole) // 25)):
            path.write_bytes(whole[:length])
            with pytest.raises(StorageError, match=path.name):
                storage.read_folder(folder)
        path.write_bytes(whole)
    assert storage.read_folder(folder) == FILES


def test_a_crash_between_the_two_renames_leaves_the_old_folder_readable(tmp_path):
    folder = tmp_path / "state"
    storage.write_folder(folder, FILES)
    os.rename(folder, tmp_path / "state.old")
    assert storage.read_folder(folder) == FILES
    storage.write_folder(folder, {"new": b"2"})
    assert storage.read_folder(folder) == {"new": b"2"}


@pytest.mark.parametrize(
    ("module", "call"), [(storage, "_write_synced"), (os, "fsync"), (os, "replace"), (os, "rename"), (os, "open")]
)
def test_whichever_call_fails_the_old_state_or_the_new_one_is_there(tmp_path, monkeypatch, module, call):
    """The disk is full at the first call, the second, … until no call fails any more."""
    folder, file = tmp_path / "state", tmp_path / "file"
    real = getattr(module, call)
    for nth in range(1, 30):
        storage.write_folder(folder, FILES)
        storage.write_file(file, b"old")
        count, fired = 0, 0

        def failing(*arguments, nth=nth, **options):
            nonlocal count
            count += 1
            if count == nth:
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        monkeypatch.setattr(module, call, failing)
        for action in (lambda: storage.write_folder(folder, {"new": b"2"}), lambda: storage.write_file(file, b"new")):
            try:
                action()
            except StorageError as error:
                fired += 1
                assert "No space left on device" in str(error)
        monkeypatch.undo()
        assert storage.read_folder(folder) in (FILES, {"new": b"2"})
        assert file.read_bytes() in (b"old", b"new")
        # Where a new name may not be on disk yet, the older folder is left until the next save.
        storage.write_folder(folder, FILES)
        assert not [path for path in tmp_path.iterdir() if "opsin-tmp" in path.name]
        if count < nth:
            assert not fired
            return
    pytest.fail("the fault never stopped firing")


def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path):
    folder = tmp_path / "state"
    storage.write_folder(folder, FILES)
    (folder / storage.MANIFEST).write_text(
        json.dumps({"version": 1, "files": {"../secret": {"size": 0, "sha256": ""}}})
    )
    with pytest.raises(StorageError, match="not a plain file of this folder"):
        storage.read_folder(folder)


@pytest.mark.parametrize("text", [b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000, b"{"])
def test_json_is_read_strictly(text):
    with pytest.raises(StorageError, match=r"x\.json"):
        storage.read_json(text, "x.json")


def test_tensors_of_any_layout_come_back(tmp_path):
    tensors = {"a": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), "b": torch.arange(5).flip(0)}
    loaded = storage.from_safetensors(storage.to_safetensors(tensors), "x")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(StorageError, match="weights: not a safetensors file"):
        storage.from_safetensors(b"nonsense", "weights")


def test_a_folder_of_somebody_elses_is_never_replaced(tmp_path):
    for name in ("pictures", "pictures.old"):
        mine = tmp_path / name
        mine.mkdir()
        (mine / "holiday.jpg").write_bytes(b"x")
        with pytest.raises(StorageError, match="was not written by opsin"):
            storage.write_folder(tmp_path / "pictures", FILES)
        assert (mine / "holiday.jpg").read_bytes() == b"x"
        (mine / "holiday.jpg").unlink()
        mine.rmdir()
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StorageError, match="was not written by opsin"):
        storage.write_folder(tmp_path / "file", FILES)
    (tmp_path / "empty").mkdir()
    storage.write_folder(tmp_path / "empty", FILES)
    assert storage.read_folder(tmp_path / "empty") == FILES
