"""A model that stays on another machine: the definition's passes run there, its weights never come here.

NDIF (ndif.us) serves large models so; nnsight sends it each pass and fetches what was kept. Here are
only the model's structure, without weights, and its tokenizer.
"""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stderr
from typing import Any

import nnsight
import torch
from nnsight import CONFIG, TransformersModel
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tracer.anatomy.names import Names
from tracer.errors import ModelSourceError
from tracer.model.language_model import LanguageModel
from tracer.model.source import place_of

IDS_AT_ONCE = 1024


def remote_model(
    source: str,
    remote: bool | str,
    tokenizer: PreTrainedTokenizerBase | None,
    names: Names | None,
    *,
    here: dict[str, Any],
) -> LanguageModel:
    """The model of that hub name on NDIF; "local" rehearses on this machine what would be sent there.

    Args:
        source: its hub name; for "local" whatever `tracer.load` takes.
        remote: True, "local" or a server's address.
        tokenizer: to replace the one that comes with the model.
        names: module paths, see `tracer.load`.
        here: options of loading, none of which may be set.

    Raises:
        ModelSourceError: there is no key, NDIF cannot be reached, or it does not run this model.
    """
    if any(here.values()):
        raise ModelSourceError("A remote model is loaded elsewhere: write load(name, remote=True) and no more options.")
    if remote is True:
        _check_served(source)
    try:
        place = place_of(source)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(place)
        own = copy.deepcopy(tokenizer)  # nnsight fills in a padding token
        there = TransformersModel(place, task="text-generation", tokenizer=own)
    except (OSError, ValueError, KeyError) as error:
        raise ModelSourceError(f"Could not read what {source!r} is made of: {error}") from error
    model = LanguageModel(there._module, tokenizer, name=source, names=names, remote=remote, nnsight=there)
    model.sweep_fault = f"{source} is on another machine, so only the definition can run it."
    for module in (model.torch, model.torch.base_model, model.anatomy.embedding):
        module.register_forward_pre_hook(_refuse)
    return model


def embedded_there(model: LanguageModel, ids: Tensor) -> Tensor:
    """What the embedding gives for token ids [...], [..., width]."""
    there, path = model.nnsight, model.anatomy.names.embedding
    parts = []
    for some in ids.flatten().split(IDS_AT_ONCE):
        with torch.inference_mode(), there.trace(some[:, None], remote=model.remote) as run:
            found = nnsight.save(there.get(path).output.detach().clone())
            run.stop()
        parts.append(found[:, 0])
    return torch.cat(parts).unflatten(0, ids.shape)


def _check_served(name: str) -> None:
    if not CONFIG.API.APIKEY:
        raise ModelSourceError(
            "remote=True needs a key of NDIF (login.ndif.us): run `nnsight login` once, or set NDIF_API_KEY."
        )
    with redirect_stderr(io.StringIO()):  # where nnsight says that the service is down
        served = nnsight.status()
    if not len(served):
        raise ModelSourceError(
            f"NDIF cannot be reached at {CONFIG.API.HOST}, or runs no model now. Try later, or load a model here."
        )
    if name not in served:
        raise ModelSourceError(f"NDIF does not run {name!r} now. It runs: {', '.join(sorted(served))}.")


def _refuse(_module: torch.nn.Module, _args: Any) -> None:
    raise ModelSourceError(
        "This model is on another machine: trace it with tracer.trace or trace_heads, average with known_only=False. "
        "For anything else load it here, without remote."
    )
