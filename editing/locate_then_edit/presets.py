"""Published settings by method and model. Layers count from 0; what is not named is the method's default.

Sources: the released configurations of ROME and MEMIT (Meng et al. 2022, 2023), PMET (Li et al. 2023),
r-ROME and EMMET (Gupta et al. 2024), AlphaEdit (Fang et al. 2025), and EasyEdit (Wang et al. 2023) for
models of 7 and 8 billion parameters, whose ROME takes C = I.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from editing.errors import RequestError

Settings = Mapping[str, Any]

_EASY_ROME: Settings = {"layer": 5, "steps": 25, "decay": 1e-3, "identity": True}
_EASY: Settings = {"layers": (4, 5, 6, 7, 8), "steps": 25, "decay": 1e-3, "clamp": 4.0}
_XL: Settings = {"layers": (13, 14, 15, 16, 17), "steps": 20}
_J: Settings = {"layers": (3, 4, 5, 6, 7, 8), "steps": 25}
_NEOX: Settings = {"layers": (6, 7, 8, 9, 10), "clamp": 0.8, "tokens": 50_000}
_LLAMA_3: Settings = {"layers": (4, 5, 6, 7, 8), "steps": 25, "rate": 0.1}
_SEVEN_B = ("llama-2-7b", "mistral-7b", "qwen2-7b", "qwen2.5-7b")

PRESETS: Mapping[str, Mapping[str, Settings]] = {
    "ROME": {
        "gpt2-medium": {"layer": 8, "clamp": 3.0},
        "gpt2-large": {"layer": 12},
        "gpt2-xl": {"layer": 17},
        "gpt-j-6b": {"layer": 5},
        "gpt-neox-20b": {"layer": 15},
        **dict.fromkeys((*_SEVEN_B, "llama-3-8b"), _EASY_ROME),
    },
    "MEMIT": {
        "gpt2-xl": {**_XL, "strength": 20_000.0},
        "gpt-j-6b": {**_J, "strength": 15_000.0},
        "gpt-neox-20b": {**_NEOX, "steps": 20, "strength": 6_000.0},
        "llama-3-8b": {**_LLAMA_3, "strength": 15_000.0},
        **dict.fromkeys(_SEVEN_B, {**_EASY, "strength": 15_000.0}),
    },
    "PMET": {
        "gpt-j-6b": {**_J, "steps": 30, "rate": 0.2, "kl": 1.0, "strength": 6_000.0},
        "gpt-neox-20b": {**_NEOX, "steps": 30, "rate": 0.5, "kl": 0.8, "strength": 15_000.0},
        "llama-2-7b": {
            **_EASY,
            "steps": 20,
            "rate": 0.5,
            "decay": 0.5,
            "clamp": 1.0,
            "kl": 0.0625,
            "strength": 15_000.0,
        },
    },
    "EMMET": {
        "gpt2-xl": {"layer": 17, "steps": 20},
        "gpt-j-6b": {"layer": 5, "steps": 25},
        "llama-2-7b": {"layer": 5, "steps": 25, "decay": 1e-3, "clamp": 4.0},
    },
    "AlphaEdit": {
        "gpt2-xl": {**_XL, "threshold": 2e-2, "strength": 10.0},
        "gpt-j-6b": {**_J, "threshold": 2e-2, "strength": 10.0},
        "llama-3-8b": {**_LLAMA_3, "threshold": 2e-2, "strength": 10.0},
        "qwen2.5-7b": {**_EASY, "threshold": 2e-2, "strength": 1.0},
    },
}


def short_name(model: str) -> str:
    """A model's name as presets have it: "EleutherAI/gpt-j-6B" is "gpt-j-6b"."""
    if not isinstance(model, str):
        raise RequestError(f"{model!r} is no name of a model. Write e.g. preset('gpt2-xl').")
    return model.rpartition("/")[2].lower()


def known_settings(kind: type, changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """`changes`; raises RequestError where one is no setting of this kind of editor."""
    known = [one.name for one in dataclasses.fields(kind)]
    if unknown := [name for name in changes if name not in known]:
        raise RequestError(f"{kind.__name__} has no setting {', '.join(unknown)}. It has {', '.join(known)}.")
    return changes
