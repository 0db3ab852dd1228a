"""What a training leaves: a network that edits one model, in memory or in a file."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from editing.errors import EditingWarning, RequestError
from editing.meta_learning.hypernetwork import Hypernetwork
from editing.meta_learning.matrices import check_sizes
from editing.training.checkpoint import EDITOR
from editing.training.result import TrainingResult
from tracer.model import LanguageModel
from tracer.storage import read_tensors, write_tensors


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training leaves.

    Attributes:
        network: the best one.
        base: fingerprint of the model it was trained on.
        model: that model's name.
        result: how the training went; None where it was read from a file.
    """

    network: Hypernetwork
    base: str
    model: str
    result: TrainingResult | None = None

    @cached_property
    def digest(self) -> str:
        """The first half of the sha256 of the network's tensors, which do not change any more."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:32]

    def __str__(self) -> str:
        return f"trained on {self.model}, {self.digest}"

    def check(self, model: LanguageModel, method: str) -> str:
        """The fingerprint of a model that the network is about to edit.

        Raises:
            BaseModelError: it lacks one of the matrices.
        """
        check_sizes(model, self.network.sizes)
        found = model.fingerprint()
        if self.base not in (found, *(edit.base for edit in model.edits)):
            warnings.warn(
                f"{method} was trained on other weights ({self.model}, {self.base[:12]}; these are {found[:12]}). "
                f"Train it on this model, in this dtype.",
                EditingWarning,
                stacklevel=4,
            )
        return found


def write_editor(path: str | Path, method: str, settings: Mapping[str, Any], trained: Trained) -> None:
    """Writes an editor's settings with its network, atomically."""
    network = trained.network
    about = {
        "kind": "trained editor",
        "method": method,
        "settings": settings,
        "sizes": network.sizes,
        "embedding_size": network.embedding_size,
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
        "base": trained.base,
        "model": trained.model,
    }
    write_tensors(path, network.state_dict(), about)


def read_editor(path: str | Path, method: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of what `write_editor` wrote, and the rest; of a training's folder the best network.

    Raises:
        FileFormatError: the file is missing, truncated or something else.
        RequestError: it holds another method's network.
    """
    path = Path(path) / EDITOR if Path(path).is_dir() else Path(path)
    tensors, about = read_tensors(path, "trained editor")
    if about.get("method") != method:
        raise RequestError(f"{path} holds a network of {about.get('method')}, not of {method}.")
    return tensors, about


def untrained(method: str) -> str:
    """What to do about an editor without a network."""
    name = method.lower()
    return (
        f"{method} learns to edit before it can, and this one is not trained. Train it, `editing train --editor {name} "
        f"--data FILE --out FOLDER` or {method}().fit(model, records), then say --set checkpoint=FOLDER or "
        f"{method}.load(FOLDER)."
    )
