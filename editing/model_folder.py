"""An edited model as a plain transformers folder, and the way back.

The folder holds one file more than transformers writes: the old values of the changed weights. So
undoing needs neither the base model nor the edit, and gives the same bits back.
"""

from __future__ import annotations

from pathlib import Path

from editing.edit import Edit
from editing.errors import BaseModelError, EditFailedError
from tracer.model import LanguageModel, load
from tracer.storage import atomic_folder, read_tensors, write_tensors

KEPT = "before_edit.safetensors"


def merge(edit: Edit, folder: str | Path) -> Path:
    """Writes the edited model and what undoing needs into a new `folder`, atomically.

    Raises:
        EditFailedError: the edit is not applied, other edits are applied too, or the folder exists.
    """
    folder, model = Path(folder), edit.model
    if model is None or model.edits != [edit]:
        raise EditFailedError("Only a model with this one edit applied can be merged. Apply it, undo the others.")
    if edit.attachments:
        raise EditFailedError(
            f"{edit.method} leaves the weights as they are, so there is nothing to merge: "
            f"edit.save(path) keeps the edit."
        )
    if folder.exists():
        raise EditFailedError(f"{folder} is there already. Give a new folder.")
    about = {
        "kind": "before edit",
        "base": edit.base,
        "edited": model.fingerprint(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "title": edit.title,
    }
    with atomic_folder(folder) as temporary:
        model.torch.save_pretrained(temporary)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(temporary)
        write_tensors(temporary / KEPT, edit.before, about)
    return folder


def unmerge(folder: str | Path, out: str | Path) -> LanguageModel:
    """Writes the model that `folder` was before its edit into `out`, bit for bit, and returns it.

    Raises:
        FileFormatError: `folder` was not written by `merge`.
        BaseModelError: its weights were changed since.
    """
    folder, out = Path(folder), Path(out)
    if out.exists():
        raise EditFailedError(f"{out} is there already. Give a new folder.")
    before, about = read_tensors(folder / KEPT, "before edit")
    model = load(folder, device="cpu", dtype=about["dtype"])
    if model.fingerprint() != about["edited"]:
        raise BaseModelError(f"{folder} was changed after it was written with the edit {about['title']!r}.")
    for name, value in before.items():
        model.torch.get_parameter(name).data.copy_(value)
    if model.fingerprint() != about["base"]:
        raise BaseModelError(f"{folder / KEPT} does not give back the weights before the edit: it was changed.")
    with atomic_folder(out) as temporary:
        model.torch.save_pretrained(temporary)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(temporary)
    return model
