"""Before a model is traced: does the sweep agree with the definition on it, and do its sites do anything?"""

from __future__ import annotations

import numpy as np
import torch

from tracer.answer import probability
from tracer.errors import AnatomyError, SweepMismatchError
from tracer.forward_pass import forward
from tracer.model import LanguageModel
from tracer.model.parallel import is_out_of_memory
from tracer.passes import Passes
from tracer.site import KINDS, Site
from tracer.sweep.one_prompt import Sweep
from tracer.sweep.two_stacks import TwoStackSweep

WINDOW = 3
LENGTH, SPAN = 6, (2, 4)  # tokens of a made-up prompt, and its subject
RANDOM_SITES = 2
# Differences in log-probability that rounding explains: over ten times those of any family in the README.
ALLOWED = {torch.float64: 1e-6, torch.float32: 2e-4, torch.bfloat16: 0.3, torch.float16: 0.3}


def by_definition(model: LanguageModel) -> Passes:
    """The clean and corrupted runs of a made-up prompt.

    Raises:
        AnatomyError: the definition cannot run this model, so nothing can trace it.
        NumericsError: its logits are not finite.
    """
    ids, noise = _made_up(model)
    try:
        passes = Passes(model, ids, SPAN, noise, n_encoder=_encoder_length(model))
    except Exception as error:  # whatever nnsight and an unknown family make of each other
        if is_out_of_memory(error):
            raise
        raise AnatomyError(
            f"{_of(model)} cannot be traced: nnsight does not reach its sites, {model.anatomy.names.attention_site!r} "
            f"and {model.anatomy.names.mlp_site!r} of each block, in that order ({type(error).__name__}: {error})."
        ) from error
    model.check_finite(passes.clean_logits)
    return passes


def self_test(model: LanguageModel, passes: Passes | None = None) -> float:
    """Traces a made-up prompt with both engines: all maps with the sweep, a few sites with the definition.

    Args:
        model: the model.
        passes: what `by_definition` returned for it, where that has been called.

    Returns:
        The largest difference in log-probability.

    Raises:
        SweepMismatchError: they differ by more than rounding explains, a site does nothing, or a site
            before the corruption does something; the message names the model type and the site.
    """
    passes = passes or by_definition(model)
    ids, noise = _made_up(model)
    _check_sites_act(model, ids, passes)
    if model.is_encoder_decoder:
        sweep = TwoStackSweep(model, ids, SPAN, noise, n_encoder=LENGTH)
        return _check_engines_agree(model, passes, sweep, ids.shape[1])
    return _check_engines_agree(model, passes, Sweep(model, ids, SPAN, noise), LENGTH)


def _made_up(model: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [1, token], a decoder's two behind an encoder's; noise for its subject [1, subject, width]."""
    random = np.random.RandomState(1)
    vocabulary = int(model.torch.config.get_text_config().vocab_size)
    length = LENGTH + 2 if model.is_encoder_decoder else LENGTH
    ids = torch.from_numpy(random.randint(vocabulary // 8, vocabulary, (1, length))).to(model.device)
    with torch.inference_mode():
        embedded = model.anatomy.embedding(ids)
    spread = 3 * float(embedded.float().std())
    return ids, torch.from_numpy(spread * random.randn(1, SPAN[1] - SPAN[0], embedded.shape[-1]))


def _encoder_length(model: LanguageModel) -> int:
    return LENGTH if model.is_encoder_decoder else 0


def _check_sites_act(model: LanguageModel, ids: torch.Tensor, passes: Passes) -> None:
    """A write at each kind of site moves the logits; a clean value before the corruption does not."""
    first = model.anatomy.n_encoder_layers
    layer, last = first + (model.n_layers - first) // 2, ids.shape[1] - 1
    for kind in KINDS:
        value = passes.clean.kept[kind][layer][0, -1]
        site = Site(kind, layer, last)
        moved = forward(model, ids, held={site: value + 1 + value.abs()}, n_encoder=passes.n_encoder).logits[0]
        if torch.equal(moved, passes.clean_logits):
            raise SweepMismatchError(f"{_of(model)}: a write to {site} does not reach the logits.")
    if model.is_encoder_decoder:
        return  # an encoder looks both ways
    before = Site("state", layer, SPAN[0] - 1)
    apart = _apart(passes.restored(passes.state(before.token, before.layer)), passes.corrupted_logits)
    if not apart <= ALLOWED[model.dtype]:
        raise SweepMismatchError(
            f"{_of(model)}: {before}, before the corruption, changes log-probabilities by {apart:.2g}. "
            f"Is its attention not causal?"
        )


def _check_engines_agree(model: LanguageModel, passes: Passes, sweep: Sweep | TwoStackSweep, length: int) -> float:
    answer, random = int(passes.clean_logits.argmax()), np.random.RandomState(1)
    tokens = list(range(SPAN[0], length))
    sites = [(int(random.choice(tokens)), int(random.randint(model.n_layers))) for _ in range(RANDOM_SITES)]
    sites = [(token, layer) for token, layer in sites if passes.state(token, layer)]  # in the stack that reads it
    sites.insert(0, (SPAN[0] + 1, 0))  # from where on all blocks compute all tokens anew
    if model.is_encoder_decoder:
        sites.insert(1, (length - 1, model.anatomy.n_encoder_layers))
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
        fast = map_of(answer, tokens)[token - SPAN[0], layer]
        apart = float((slow.log() - fast.log()).abs().max())
        if not apart <= ALLOWED[model.dtype]:
            raise SweepMismatchError(
                f"{_of(model)}: at layer {layer}, token {token} ({name}) the sweep differs from the definition by "
                f"{apart:.2g} in log-probability."
            )
        worst = max(worst, apart)
    return worst


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double().log_softmax(-1) - other.double().log_softmax(-1)).abs().max())


def _of(model: LanguageModel) -> str:
    return f"{model.name} (model type {model.torch.config.model_type!r})"
