"""What a training leaves: a network that edits one model, in memory or in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editing.meta_learning.hypernetwork import Hypernetwork
from editing.meta_learning.training import TrainingResult
from tracer.storage import write_tensors


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

    def __str__(self) -> str:
        found = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return f"trained on {self.model}, {found.hexdigest()[:16]}"


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


def untrained(method: str) -> str:
    """What to do about an editor without a network."""
    name = method.lower()
    return (
        f"{method} learns to edit before it can, and this one is not trained. Train it, `editing train --editor {name} "
        f"--data FILE --out FOLDER` or {method}().fit(model, records), then say --set checkpoint=FOLDER or "
        f"{method}.load(FOLDER)."
    )
