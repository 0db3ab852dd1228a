"""`model.torch.generate` while edits stand beside the weights.

It is given the prompt whole, so what goes by where a prompt ends is told that, whether a cache is used or not.
A memory rewrites text, and here there are token ids: it is not asked, which is said.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from editing.errors import EditingWarning
from tracer.model import LanguageModel
from tracer.model.prompt_ends import every_prompt_ends_at

WATCHERS, PLAIN = "_generate_watchers", "_plain_generate"
GIVEN = ("inputs", "input_ids", "inputs_embeds")  # as generate calls what it is given


def watch_generate(model: LanguageModel) -> Callable[[], None]:
    """Sees to `model.torch.generate` from now on; what is returned ends that, for the last who asked."""
    store = model.torch.__dict__
    if not store.get(WATCHERS):
        store[WATCHERS], store[PLAIN] = [], store.get("generate")  # a function of the model's own, if it has one
        store["generate"] = _watched(model, model.torch.generate)
    token = object()
    store[WATCHERS].append(token)

    def end() -> None:
        store[WATCHERS].remove(token)
        if not store[WATCHERS]:
            del store["generate"], store[WATCHERS]
            if (plain := store.pop(PLAIN)) is not None:
                store["generate"] = plain

    return end


def _watched(model: LanguageModel, plain: Any) -> Callable[..., Any]:
    @functools.wraps(plain)
    def generate(*args: Any, **options: Any) -> Any:
        _warn_of_memories(model)
        given = args[0] if args else next((options[name] for name in GIVEN if options.get(name) is not None), None)
        if given is None:
            return plain(*args, **options)
        with every_prompt_ends_at(model, given.shape[1] - 1):
            return plain(*args, **options)

    return generate


def _warn_of_memories(model: LanguageModel) -> None:
    if model.readers:
        warnings.warn(
            f"{model.name} has {len(model.readers)} memories of edits, which read prompts as text: generate, which "
            f"takes token ids, does not ask them. Write editing.complete(model, prompts, new_tokens=20).",
            EditingWarning,
            stacklevel=3,
        )
