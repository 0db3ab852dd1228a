"""The layer to edit where none is given: the MLP peak over bundled facts, traced once for each model and kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import tracer
from editing.edit import original_fingerprint, unedited
from editing.editors import needs_layer
from tracer.errors import FactError
from tracer.model import LanguageModel
from tracer.storage import cache_folder, write_json
from tracer.studies.locating import FACTS_TO_LOCATE


def located_layer(model: LanguageModel, *, progress: bool | None = None) -> int | None:
    """The layer of that peak in the unedited model; traced the first time, then read from the cache.

    None where the model predicts none of the facts: then someone must say a layer.

    Args:
        model: its edits, if any, are taken out meanwhile.
        progress: show a bar.
    """
    path = cache_folder() / "layers" / f"{original_fingerprint(model)[:40]}-{FACTS_TO_LOCATE}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):  # absent or damaged: traced again
        return int(json.loads(path.read_text(encoding="utf-8"))["layer"])
    try:
        with unedited(model):
            place = tracer.locate(tracer.average_to_locate(model, progress=progress))
    except FactError:
        return None
    write_json(path, place.record())
    return place.layer


def layer_for(
    editor: str, model: LanguageModel, layer: int | None, settings: Mapping[str, Any], *, progress: bool | None = None
) -> int | None:
    """`layer`, or where none is given and an editor of this name with these settings needs one, the located one."""
    if layer is not None or not needs_layer(editor) or {"layer", "layers"} & settings.keys():
        return layer
    return located_layer(model, progress=progress)
