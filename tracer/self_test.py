"""Before a model is traced: does the sweep agree with the definition on it, and do its sites do anything?"""

from __future__ import annotations

import numpy as np
import torch

from tracer.answer import probability
from tracer.errors import SweepMismatchError
from tracer.model import LanguageModel
from tracer.passes import Passes, forward
from tracer.site import KINDS, Site
from tracer.sweep import Sweep

WINDOW = 3
SPAN = (2, 4)  # the made-up subject in a made-up prompt of six tokens


def self_test(model: LanguageModel) -> float:
    """Traces three random sites of a made-up prompt with both engines.

    Returns:
        The largest difference in log-probability.

    Raises:
        SweepMismatchError: they differ by more than rounding explains, a site does nothing, or a site
            before the corruption does something; the message names the model type and the site.
    """
    random = np.random.RandomState(1)
    vocabulary = int(model.torch.config.get_text_config().vocab_size)
    ids = torch.from_numpy(random.randint(vocabulary // 8, vocabulary, (1, 6))).to(model.device)
    with torch.inference_mode():
        embedded = model.anatomy.embedding(ids)
    noise = torch.from_numpy(3 * float(embedded.float().std()) * random.randn(1, SPAN[1] - SPAN[0], embedded.shape[-1]))
    passes, sweep = Passes(model, ids, SPAN, noise), Sweep(model, ids, SPAN, noise)
    model.check_finite(passes.clean_logits)
    _check_sites_act(model, ids, passes)
    return _check_engines_agree(model, passes, sweep, random)


def _check_sites_act(model: LanguageModel, ids: torch.Tensor, passes: Passes) -> None:
    """A write at each kind of site moves the logits; a clean value before the corruption does not."""
    layer = model.n_layers // 2
    for kind in KINDS:
        value = passes.clean.kept[kind][layer][0, -1]
        moved = forward(model, ids, held={Site(kind, layer, ids.shape[1] - 1): value + 1 + value.abs()}).logits[0]
        if torch.equal(moved, passes.clean_logits):
            raise SweepMismatchError(f"{_of(model)}: a write to {Site(kind, layer, 5)} does not reach the logits.")
    before = Site("state", layer, SPAN[0] - 1)
    apart = _apart(passes.restored(passes.state(before.token, before.layer)), passes.corrupted_logits)
    if not apart <= _allowed(model):
        raise SweepMismatchError(
            f"{_of(model)}: {before}, before the corruption, changes log-probabilities by {apart:.2g}. "
            f"Is its attention not causal?"
        )


def _check_engines_agree(model: LanguageModel, passes: Passes, sweep: Sweep, random: np.random.RandomState) -> float:
    answer, tokens = int(passes.clean_logits.argmax()), list(range(SPAN[0], 6))
    sites = [(int(random.choice(tokens)), int(random.randint(model.n_layers))) for _ in range(3)]
    worst = 0.0
    maps = {
        "state": (passes.state, sweep.state_map),
        "mlp": (
            lambda token, layer: passes.window("mlp", token, layer, WINDOW),
            lambda answer, tokens: sweep.window_map("mlp", answer, tokens, WINDOW),
        ),
        "attn": (
            lambda token, layer: passes.window("attn", token, layer, WINDOW),
            lambda answer, tokens: sweep.window_map("attn", answer, tokens, WINDOW),
        ),
        "state, mlp severed": (
            lambda token, layer: passes.severed("mlp", token, layer),
            lambda answer, tokens: sweep.severed_map("mlp", answer, tokens),
        ),
        "state, attn severed": (
            lambda token, layer: passes.severed("attn", token, layer),
            lambda answer, tokens: sweep.severed_map("attn", answer, tokens),
        ),
    }
    for number, (name, (held, map_of)) in enumerate(maps.items()):
        token, layer = sites[number % len(sites)]
        slow = probability(passes.restored(held(token, layer)), answer)
        fast = map_of(answer, [token])[0, layer]
        apart = float((slow.log() - fast.log()).abs().max())
        if not apart <= _allowed(model):
            raise SweepMismatchError(
                f"{_of(model)}: at layer {layer}, token {token} ({name}) the sweep differs from the definition by "
                f"{apart:.2g} in log-probability."
            )
        worst = max(worst, apart)
    return worst


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double().log_softmax(-1) - other.double().log_softmax(-1)).abs().max())


def _allowed(model: LanguageModel) -> float:
    return 2e-3 if model.dtype in (torch.float32, torch.float64) else 0.3


def _of(model: LanguageModel) -> str:
    return f"{model.name} (model type {model.torch.config.model_type!r})"
