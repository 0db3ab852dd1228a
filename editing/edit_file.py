"""An edit as one file: its changes alone, its attachments and the fingerprint of the model it was made for.

A low-rank change is two thin matrices, so such a file has a few kilobytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editing.attachment import ATTACHMENTS, Attachment
from editing.change import KINDS, Change
from editing.edit import Edit
from editing.request import EditRequest
from tracer.errors import FileFormatError
from tracer.storage import read_tensors, write_tensors

FORMAT = 3


def write_edit(edit: Edit, path: str | Path) -> None:
    """Writes an edit, atomically.

    Raises:
        EditFailedError: no file can hold what is attached.
    """
    for attachment in edit.attachments:
        attachment.check_file()
    tensors = {f"kept/{name}": tensor for name, tensor in edit.kept.items()}
    for number, change in enumerate(edit.changes):
        tensors |= {f"{number}/{name}": tensor for name, tensor in change.tensors().items()}
    for number, attachment in enumerate(edit.attachments):
        tensors |= {f"attached/{number}/{name}": tensor for name, tensor in attachment.tensors().items()}
    names: dict[type, str] = {of: kind for kind, of in KINDS.items()}
    about = {
        "kind": "edit",
        "format": FORMAT,
        "base": edit.base,
        "beside": edit.beside,
        "changes": [{"kind": names[type(change)], "weight": change.weight} for change in edit.changes],
        "attachments": [{"kind": one.kind, "about": one.about()} for one in edit.attachments],
        "requests": [dataclasses.asdict(request) for request in edit.requests],
        "editor": dict(edit.editor),
        "diagnostics": [dict(record) for record in edit.diagnostics],
        "summary": dict(edit.summary),
    }
    write_tensors(path, tensors, about)


@torch.inference_mode(False)  # a later edit may be trained through what is attached
def load_edit(path: str | Path) -> Edit:
    """Reads a saved edit; `.apply(model)` writes it.

    Raises:
        FileFormatError: the file is missing, truncated or something else.
    """
    tensors, about = read_tensors(path, "edit")
    try:
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}, not {FORMAT}")
        changes = tuple(_change(number, record, tensors) for number, record in enumerate(about["changes"]))
        requests = tuple(EditRequest(**request) for request in about["requests"])
        kept = {name.removeprefix("kept/"): tensor for name, tensor in tensors.items() if name.startswith("kept/")}
        attached = tuple(_attachment(number, one, tensors) for number, one in enumerate(about["attachments"]))
        records, summary = tuple(about["diagnostics"]), dict(about["summary"])
        made_by, base, beside = dict(about["editor"]), str(about["base"]), str(about.get("beside", ""))
        edit = Edit(requests, changes, made_by, base, records, kept, summary, attached, beside=beside)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{path} is an edit of another version: {error}. Make it again.") from error
    expected = sum(len(part.tensors()) for part in (*changes, *attached)) + len(kept)
    if len(tensors) != expected or not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise FileFormatError(f"{path} is damaged. Make the edit again.")
    return edit


def _change(number: int, record: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Change:
    kind = KINDS[record["kind"]]
    names = [one.name for one in dataclasses.fields(kind) if one.name != "weight"]
    return kind(record["weight"], *(tensors[f"{number}/{name}"] for name in names))


def _attachment(number: int, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Attachment:
    begin = f"attached/{number}/"
    own = {name.removeprefix(begin): tensor for name, tensor in tensors.items() if name.startswith(begin)}
    return ATTACHMENTS[record["kind"]].restored(record["about"], own)
