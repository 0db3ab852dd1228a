"""The processes of a sharded model agree on what is to be done: they find the same files, and one writes them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from torch import distributed

from tracer.model.language_model import LanguageModel


def folder_here(model: LanguageModel, folder: str | Path) -> Path:
    """Where this process reads and writes the files of `folder`; every process of the model must ask.

    For the first process of a sharded model, and for any other model, that is `folder` itself. The others
    get a copy of what it holds now, which goes when they end: were they to look for the first one's new
    files they could skip a pass that it waits for.
    """
    folder = Path(folder)
    if not model.is_sharded:
        return folder
    first = distributed.get_rank() == 0
    held = [_contents(folder) if first else {}]
    distributed.broadcast_object_list(held)
    if first:
        return folder
    copy = Path(tempfile.mkdtemp(prefix="tracer-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for name, content in held[0].items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    return copy


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
