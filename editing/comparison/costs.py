"""What an editor costs: measured here, and of a training that came before as its folder tells."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editing.comparison.entrant import Entrant
from editing.comparison.plan import entry
from editing.training.checkpoint import training_spent

OF_TRAINING = ("training_seconds", "training_bytes")
SELF_CONTAINED = ("serac",)  # their saved edits hold what was trained, so it is among the edit's bytes


def training_costs(entrant: Entrant) -> dict[str, float | int | None]:
    """Seconds and bytes of what an editor was trained to be; 0 where it is not, None where nobody knows."""
    checkpoint = entrant.settings.get("checkpoint")
    seconds, size = training_spent(checkpoint) if checkpoint else (0.0, 0)
    return dict(zip(OF_TRAINING, (seconds, 0 if entrant.editor in SELF_CONTAINED else size), strict=True))


def total_cost(cost: Mapping[str, Any], names: Sequence[str]) -> float | None:
    """The sum of these costs of an editor; None where one is unknown."""
    found = [cost.get(name, 0 if name in OF_TRAINING else None) for name in names]
    return None if None in found else math.fsum(found)


def costs_known(path: Path, entrant: Entrant, *, cold: bool, workers: int) -> bool:
    """Whether a file holds the costs of this editor with these settings, its training's too.

    Those of a warm cache are none of a `cold` one, and those measured while others ran none of one process alone.
    """
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    noisier = found.get("workers", 0) > 1 and workers <= 1
    if found["entry"] != entry(entrant) or (cold and not found.get("cold")) or noisier:
        return False
    return "checkpoint" not in entrant.settings or OF_TRAINING[0] in found
