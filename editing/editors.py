"""Editors by name, and the one contract they keep.

A new editor is one line in `FAMILIES`: a factory that takes the model, a layer or None, and settings by name. With its
class in `KINDS` a setting that it does not have is named before a model is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from editing.added_parameters.calinet import CaliNet
from editing.added_parameters.grace import GRACE
from editing.added_parameters.t_patcher import TPatcher
from editing.edit import Edit
from editing.errors import RequestError
from editing.fine_tuning.ft import FT, Variant
from editing.locate_then_edit.alphaedit import AlphaEdit
from editing.locate_then_edit.emmet import EMMET
from editing.locate_then_edit.kn import KN
from editing.locate_then_edit.memit import MEMIT, layers_around
from editing.locate_then_edit.pmet import PMET
from editing.locate_then_edit.rome import ROME
from editing.memory import IKE, SERAC, MeLLo, MemPrompt, load_scope, read_scoped_facts
from editing.memory.memory import MemoryEditor
from editing.meta_learning.ke import KE
from editing.meta_learning.learned import Learned
from editing.meta_learning.mend import MEND
from editing.meta_learning.trained import untrained
from editing.request import EditRequest
from editing.setting_checks import whole
from tracer.model import LanguageModel


class Editor(Protocol):
    """Whatever writes requests into a model and returns an edit that can be undone.

    An editor may also have `each`, with the arguments of `apply`: one edit a request, each made on the model as
    it is and not applied, computed together; and `in_turn`: the same, each edit as it is made after those before it.
    Evaluations of single and of sequential edits use them where they are there.
    """

    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> Edit:
        """Writes the requests into the model, which stays edited until the edit is undone."""
        ...


def editor_named(name: str, model: LanguageModel, layer: int | None = None, /, **settings: Any) -> Editor:
    """The editor of this name for a model.

    Args:
        name: a key of `EDITORS`.
        model: that it will edit.
        layer: to write to; methods of several layers take those around it.
        settings: others, by the names of the editor's fields.

    Raises:
        RequestError: there is no such editor or setting, or a layer is missing.
        SiteError: the model has no such layer.
    """
    check_settings(name, settings)
    if "layer" in settings:
        layer = _one_of(layer, settings.pop("layer"))
    if layer is not None:
        layer = whole("layer", layer, 3)
        model.anatomy.check_layer(layer)
    if "variant" in settings and name in VARIANTS:
        raise RequestError(f"{name} is a variant itself: leave variant={settings['variant']!r} out.")
    try:
        return EDITORS[name](model, layer, **settings)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise RequestError(f"{name} cannot be made with {given or 'no settings'}: {error}.") from error


def _one_of(layer: int | None, setting: Any) -> Any:
    """The layer, told as an argument or as a setting."""
    if layer not in (None, setting):
        raise RequestError(f"Layer {layer} or {setting}? Give one of the two.")
    return setting


def _refuse(layer: int | None, why: str) -> None:
    """RequestError where a layer is given to an editor that takes none."""
    if layer is not None:
        raise RequestError(f"{why}: leave layer={layer} out.")


def check_name(name: str) -> None:
    """Raises RequestError where there is no editor of this name."""
    if name not in EDITORS:
        raise RequestError(f"There is no editor {name!r}. Choose from {', '.join(EDITORS)}.")


def check_settings(name: str, settings: Iterable[str]) -> None:
    """Raises RequestError where there is no editor of this name, or a setting is none of its own."""
    check_name(name)
    if name not in KINDS:  # one that was added from outside
        return
    known = {one.name for one in dataclasses.fields(KINDS[name])} | {"layer"}
    known |= {"checkpoint"} if KINDS[name] in (MEND, KE, SERAC) else set()
    for unknown in sorted({*settings} - known - {"layers"}):  # of layers, an editor of one layer says what to write
        raise RequestError(f"{name} has no setting {unknown!r}. Choose from {', '.join(sorted(known))}.")


def _make_at_layer(kind: Callable[..., Editor], _model: LanguageModel, layer: int | None, **settings: Any) -> Editor:
    if "layers" in settings:
        raise RequestError(f"This editor writes one layer, not layers={settings['layers']!r}. Write layer=3.")
    if layer is None:
        raise RequestError("Which layer? Give one (--layer 3); `tracer locate` or `editing check-layers` find it.")
    return kind(layer=layer, **settings)


def _make_around_layer(kind: Callable[..., Editor], model: LanguageModel, layer: int | None, **settings: Any) -> Editor:
    if "layers" in settings:
        _refuse(layer, f"layers={settings['layers']!r} are given")
        return kind(**settings)
    return _make_at_layer(
        lambda layer, **others: kind(layers=layers_around(layer, model.n_layers), **others), model, layer, **settings
    )


def _make_ft(variant: Variant, model: LanguageModel, layer: int | None, **settings: Any) -> Editor:
    return _at_suited_layer(partial(FT.suited_to, variant=variant), model, layer, **settings)


def _make_kn(_model: LanguageModel, layer: int | None, **settings: Any) -> Editor:
    _refuse(layer, "KN finds its neurons in all layers")
    return KN(**settings)


def _make_learned(kind: type[Learned], _model: LanguageModel, layer: int | None, **settings: Any) -> Editor:
    checkpoint = settings.pop("checkpoint", None)
    if checkpoint is None:
        raise RequestError(untrained(kind.method))
    _refuse(layer, f"{kind.method} changes the matrices it was trained for")
    return dataclasses.replace(_trained(kind, checkpoint, settings), **settings)


def _trained(kind: type[Learned], checkpoint: str, settings: Mapping[str, Any]) -> Learned:
    """The editor in a file; RequestError where a setting is to differ of which its network was made."""
    found = kind.load(checkpoint)
    own = found.settings()
    fixed = [
        f"{name}={own[name]}" for name in own.keys() & settings.keys() - kind.of_edits if own[name] != settings[name]
    ]
    if fixed:
        raise RequestError(
            f"The network in {checkpoint} was trained with {', '.join(sorted(fixed))}. Leave that out or train "
            f"another; what can be set now: {', '.join(sorted(kind.of_edits))}."
        )
    return found


def _at_suited_layer(kind: Callable[..., Any], model: LanguageModel, layer: int | None, **settings: Any) -> Editor:
    suited = kind(model)
    return dataclasses.replace(suited, layer=suited.layer if layer is None else layer, **settings)


def _make_grace(model: LanguageModel, layer: int | None, **settings: Any) -> Editor:
    """GRACE; its radius is measured where none is given."""
    if "radius" in settings:
        return GRACE(layer=GRACE.usual_layer(model) if layer is None else layer, **settings)
    return dataclasses.replace(GRACE.suited_to(model, layer), **settings)


def _make_t_patcher(kind: Callable[..., Editor], model: LanguageModel, layer: int | None, **settings: Any) -> Editor:
    last = model.n_layers - 1
    _refuse(None if layer == last else layer, f"T-Patcher writes beside the last MLP, layer {last}")
    return kind(**settings)


def _make_calinet(model: LanguageModel, layer: int | None, **settings: Any) -> Editor:
    if "layers" in settings:
        _refuse(layer, f"layers={settings['layers']!r} are given")
    if layer is not None:
        settings["layers"] = (layer,)
    return dataclasses.replace(CaliNet.suited_to(model), **settings)


def _make_memory(kind: type[MemoryEditor], _model: LanguageModel, layer: int | None, **settings: Any) -> Editor:
    _refuse(layer, f"{kind.__name__} keeps its edits in a memory, not in a layer")
    return kind(**settings)


def _make_ike(model: LanguageModel, layer: int | None, **settings: Any) -> Editor:
    """IKE; its demonstrations from a file, if one is named."""
    if "demonstrations" in settings:
        settings["demonstrations"] = read_scoped_facts(settings["demonstrations"])
    return _make_memory(IKE, model, layer, **settings)


def _make_serac(model: LanguageModel, layer: int | None, **settings: Any) -> Editor:
    """SERAC; its scope classifier from a training, or trained on the bundled facts now, which takes seconds."""
    checkpoint = settings.pop("checkpoint", None)
    made = _make_memory(SERAC, model, layer, **settings)
    assert isinstance(made, SERAC)
    if checkpoint is None:
        return made if made.scope else made.fit(model)
    return dataclasses.replace(made, scope=load_scope(checkpoint))


VARIANTS = ("r-rome", "rome", "p-rome", "ft", "ft-l", "ft-m")  # names that say a variant themselves
FAMILIES: Mapping[str, Mapping[str, Callable[..., Editor]]] = {
    "locate then edit": {
        "r-rome": partial(_make_at_layer, partial(ROME, variant="r-rome")),
        "rome": partial(_make_at_layer, partial(ROME, variant="rome")),
        "p-rome": partial(_make_at_layer, partial(ROME, variant="p-rome")),
        "memit": partial(_make_around_layer, MEMIT),
        "pmet": partial(_make_around_layer, PMET),
        "emmet": partial(_make_at_layer, EMMET),
        "alphaedit": partial(_make_around_layer, AlphaEdit),
        "kn": _make_kn,
    },
    "fine tuning": {
        "ft": partial(_make_ft, "FT"),
        "ft-l": partial(_make_ft, "FT-L"),
        "ft-m": partial(_make_ft, "FT-M"),
    },
    "meta learning": {"mend": partial(_make_learned, MEND), "ke": partial(_make_learned, KE)},
    "added parameters": {
        "grace": _make_grace,
        "t-patcher": partial(_make_t_patcher, TPatcher),
        "calinet": _make_calinet,
    },
    "memory": {
        "ike": _make_ike,
        "memprompt": partial(_make_memory, MemPrompt),
        "mello": partial(_make_memory, MeLLo),
        "serac": _make_serac,
    },
}
KINDS: Mapping[str, type] = {  # whose fields are their settings
    **dict.fromkeys(("r-rome", "rome", "p-rome"), ROME),
    **dict.fromkeys(("ft", "ft-l", "ft-m"), FT),
    **{"memit": MEMIT, "pmet": PMET, "emmet": EMMET, "alphaedit": AlphaEdit, "kn": KN, "mend": MEND, "ke": KE},
    **{"grace": GRACE, "t-patcher": TPatcher, "calinet": CaliNet},
    **{"ike": IKE, "memprompt": MemPrompt, "mello": MeLLo, "serac": SERAC},
}
EDITORS: Mapping[str, Callable[..., Editor]] = {
    name: make for editors in FAMILIES.values() for name, make in editors.items()
}


def needs_layer(name: str) -> bool:
    """Whether an editor cannot be made without a layer: others find their own."""
    return getattr(EDITORS[name], "func", None) in (_make_at_layer, _make_around_layer)


def check_located(name: str, settings: Mapping[str, Any]) -> None:
    """Raises RequestError where an editor with these settings does not write to the layer that tracing locates."""
    check_name(name)
    if getattr(EDITORS[name], "func", None) not in (_make_at_layer, _make_around_layer, _make_ft):
        raise RequestError(
            f"{name} does not write to the layer that tracing locates. Write `editing edit --editor {name}`."
        )
    for setting in {"layer", "layers"} & settings.keys():
        raise RequestError(f"{setting}={settings[setting]!r}: leave it out, for the layer is what is looked for.")


def family(name: str) -> str:
    """The family of an editor of `EDITORS`, in words; "others" for one that was added to it from outside."""
    return next((words for words, editors in FAMILIES.items() if name in editors), "others")
