"""Files that are whole or absent: every write goes to a temporary name and is then renamed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tracer.errors import FileFormatError


def cache_folder() -> Path:
    """Where weights and statistics are kept: $LOCATE_THEN_EDIT_CACHE, else the user's cache folder."""
    chosen = os.environ.get("LOCATE_THEN_EDIT_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "locate-then-edit"


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path`, renamed to it when the block ends, removed when it fails.

    Raises:
        FileFormatError: `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise FileFormatError(f"{path} is a folder. Give the path of a file, in it or elsewhere.")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_half_written(*folders: Path) -> None:
    """Removes what killed runs were writing into these folders; nobody may be writing there now."""
    for folder in folders:
        for half in folder.glob(".*.*"):
            if half.is_file():
                half.unlink()


@contextmanager
def of_this_version(path: str | Path, what: str) -> Iterator[None]:
    """Makes errors about missing or strange contents of a file say so: FileFormatError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        damaged = " or is damaged" if isinstance(error, json.JSONDecodeError) else ""
        raise FileFormatError(f"{path} holds {what} of another version{damaged}: {error}. Make it again.") from error


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """As `atomic_path`, for a folder. A folder that another process finished first is kept."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def plain(value: Any) -> Any:
    """What JSON writes for a value it does not know: numpy's and torch's numbers as Python's, paths as text."""
    return value.item() if hasattr(value, "item") else str(value)


def to_json(record: Any, *, indent: int | None = None) -> str:
    """`record` as strict JSON: NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_finite(record), indent=indent, ensure_ascii=False, default=plain, allow_nan=False)


def _finite(record: Any) -> Any:
    if isinstance(record, Mapping):
        return {key: _finite(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def write_json(path: str | Path, record: Any) -> None:
    """Writes `record` as indented UTF-8 JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(record, indent=2) + "\n", encoding="utf-8")


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Writes a safetensors file whose header carries `about` as JSON, atomically."""
    with atomic_path(path) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"about": to_json(about)})


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Raises:
        FileFormatError: the file is missing, truncated, or its header is not of this `kind`.
    """
    about = read_about(path, kind)
    with _whole_file(path), safe_open(path, framework="pt") as file:
        names = list(file.keys())  # a safetensors file is not iterable itself
        # Copies: as they lie in a file they are not aligned, and products of them round otherwise.
        return {name: file.get_tensor(name).clone() for name in names}, about


def read_about(path: str | Path, kind: str) -> dict[str, Any]:
    """The header alone of what `write_tensors` wrote; errors as `read_tensors`'."""
    if not Path(path).is_file():
        raise FileFormatError(f"There is no file {path}. Give the path that the result was saved to.")
    with _whole_file(path), safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {}).get("about", "null"))
    if not isinstance(about, dict) or about.get("kind") != kind:
        found = about.get("kind", "something else") if isinstance(about, dict) else "something else"
        raise FileFormatError(f"{path} holds {found!r}, where {kind!r} is expected.")
    return about


@contextmanager
def _whole_file(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise FileFormatError(f"{path} is not a whole safetensors file ({error}). Save it again.") from error
