"""Who takes part in a comparison: editors by name, with settings from a file or from the command line.

A settings file, TOML or JSON, has a table for each editor. A table of another name takes part as an editor of
its own if it says which one it is:

    [memit]
    layers = [2, 3, 4]
    [gentle-rome]
    editor = "rome"
    layer = 3
    clamp = 0.5
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editing.editors import EDITORS, Editor, check_settings, editor_named, needs_layer
from editing.errors import EvaluationError
from editing.options import hashable
from tracer.errors import SiteError
from tracer.model import LanguageModel

LABEL = re.compile(r"\w(?:[\w.-]*\w)?")


@dataclass(frozen=True)
class Entrant:
    """One editor of a comparison.

    Attributes:
        label: its name in tables.
        editor: a key of `EDITORS`.
        layer: that it writes to; None: its own.
        settings: others, by the names of its fields.
    """

    label: str
    editor: str
    layer: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lacks_layer(self) -> bool:
        """Whether it cannot be made for want of a layer."""
        return self.layer is None and needs_layer(self.editor) and "layers" not in self.settings

    def check_layers(self, model: LanguageModel) -> None:
        """Raises SiteError, with its label, where it is to write a layer that the model does not have."""
        several = self.settings.get("layers", ())
        layers = [self.layer, *(several if isinstance(several, tuple) else ())]
        for layer in (layer for layer in layers if isinstance(layer, int)):  # other things, making it refuses
            try:
                model.anatomy.check_layer(layer)
            except SiteError as error:
                raise SiteError(f"{self.label}: {error}") from error

    def made(self, model: LanguageModel) -> Editor:
        """The editor, suited to a model; may take a while for one that trains."""
        return editor_named(self.editor, model, self.layer, **self.settings)


def entrants(
    names: Sequence[str], *, layer: int | None = None, tables: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Entrant]:
    """The entrants of these names; "all" stands for every editor and every table of the settings.

    Args:
        names: keys of `EDITORS` or of `tables`.
        layer: for those that cannot be made without one and have none in their table.
        tables: settings by name.

    Raises:
        RequestError: there is no such editor, or it has no such setting.
        EvaluationError: a name twice or with other signs than - _ . in it, or a table that is no editor's.
    """
    tables = tables or {}
    for label, table in tables.items():
        if label not in EDITORS and "editor" not in table:
            raise EvaluationError(f'Settings of {label!r} say no editor. Add editor = "rome" to its table.')
    chosen = list(dict.fromkeys([*EDITORS, *tables])) if list(names) == ["all"] else list(names)
    if not chosen or len(set(chosen)) < len(chosen):
        raise EvaluationError(f'{", ".join(chosen) or "No editor"}: name each once, or write "all".')
    return [_entrant(label, layer, tables.get(label, {})) for label in chosen]


def read_settings(path: str | Path) -> dict[str, dict[str, Any]]:
    """The tables of a TOML or JSON file.

    Raises:
        EvaluationError: missing, not readable, or something else than tables.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} is no TOML or JSON file of settings: {error}.") from error
    if not isinstance(found, dict) or not all(isinstance(table, dict) for table in found.values()):
        raise EvaluationError(f"{path} has settings outside a table. Write [memit] above those of memit.")
    return {label: {name: hashable(value) for name, value in table.items()} for label, table in found.items()}


def _entrant(label: str, layer: int | None, table: Mapping[str, Any]) -> Entrant:
    if not LABEL.fullmatch(label):  # folders are named after it
        raise EvaluationError(f"{label!r} names no editor of a table. Use letters and digits, and - _ . between them.")
    settings = dict(table)
    editor = settings.pop("editor", label)
    check_settings(editor, settings)
    own = settings.pop("layer", None)
    asked = layer if needs_layer(editor) and "layers" not in settings else None
    return Entrant(label, editor, asked if own is None else own, settings)
