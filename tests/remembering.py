"""What the tests of editors with a memory share: a model that reads long prompts, vectors made by hand, requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from conftest import llama_like
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tracer
from editing import EditRequest
from editing.memory.retrieval import Cosine
from editing.memory.retrievers import RETRIEVERS

ROME = EditRequest("The capital of {} is", "France", "Rome", id="france")
MADRID = EditRequest("The capital of {} is", "Japan", "Madrid", id="japan")
FLAT = {
    "prompt": "Ada plays",
    "subject": "Ada",
    "target_new": "chess",
    "rephrase_prompt": "Ada is good at",
    "locality_prompt": "Alan plays",
    "locality_ground_truth": "go",
}
PROMPTS = ["The capital of France is", "The capital of Japan is", "The people of Spain speak"]
PAIRS = [(prompt, target) for prompt in PROMPTS for target in (" Paris", " Rome", " the city of")]


def reading_model(tokenizer: PreTrainedTokenizerFast, *, context: int = 2048, seed: int = 0) -> tracer.LanguageModel:
    """A tiny random float64 Llama with room for what editors put before a prompt."""
    torch.manual_seed(seed)
    config = LlamaConfig(**{**llama_like(), "num_hidden_layers": 2, "max_position_embeddings": context})
    return tracer.load(LlamaForCausalLM(config).double(), tokenizer=tokenizer, check=False)


@dataclass(frozen=True)
class ByHand:
    """An encoder that knows the vectors of some texts; others get the last one."""

    vectors: dict[str, Sequence[float]] = field(hash=False)
    name: str = "by hand"
    width: int = 2

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self.vectors.get(text, (0.0, 1.0)) for text in texts], dtype=float).reshape(-1, self.width)


@contextmanager
def retriever(vectors: dict[str, Sequence[float]], name: str = "by-hand") -> Iterator[str]:
    """A retriever of that name while the block runs."""
    RETRIEVERS[name] = lambda: Cosine(ByHand(vectors))
    try:
        yield name
    finally:
        del RETRIEVERS[name]


def states(model: tracer.LanguageModel) -> dict[str, torch.Tensor]:
    """Every parameter and buffer as it is."""
    return {name: tensor.clone() for name, tensor in model.torch.state_dict().items()}


def same_states(model: tracer.LanguageModel, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.torch.state_dict().items())
