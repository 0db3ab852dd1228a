"""The procedure of the published tracer, and every map by it and by the sweep."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from prompts import Prompt
from torch import Tensor

from tracer.anatomy.hidden import hidden_of, with_hidden
from tracer.answer import probability
from tracer.model import LanguageModel
from tracer.site import window_layers
from tracer.sweep import Sweep

MAPS = ("state", "mlp", "attn", "state | mlp severed")
WINDOW = 10


class Straightforward:
    """One forward of samples + 1 rows for each site, with plain hooks."""

    def __init__(self, model: LanguageModel, prompt: Prompt, samples: int) -> None:
        self.model, self.prompt = model, prompt
        self.rows = prompt.ids.expand(samples + 1, -1)
        self.modules = {
            "state": model.anatomy.blocks,
            "mlp": [model.anatomy.site_module("mlp", layer) for layer in range(model.n_layers)],
            "attn": [model.anatomy.site_module("attn", layer) for layer in range(model.n_layers)],
        }

    def restored(self, name: str, token: int, layer: int, answer: int) -> float:
        """p(answer) with one site of the map `name` restored, the mean over the samples."""
        if "severed" not in name:
            layers = window_layers(layer, WINDOW, self.model.n_layers) if name != "state" else [layer]
            return self._forward({(name, at): "clean" for at in layers}, token, answer)
        kept: dict[tuple[str, int], Tensor] = {}
        every = [("mlp", at) for at in range(self.model.n_layers)]
        self._forward({}, token, answer, keep=(every, kept))
        return self._forward({**{site: kept[site] for site in every}, ("state", layer): "clean"}, token, answer)

    def _forward(
        self,
        held: dict[tuple[str, int], Tensor | str],
        token: int,
        answer: int,
        keep: tuple[list[tuple[str, int]], dict[tuple[str, int], Tensor]] | None = None,
    ) -> float:
        begin, end = self.prompt.span

        def corrupt(_module: object, _args: object, output: Tensor) -> Tensor:
            output = output.clone()
            output[1:, begin:end] += self.prompt.noise.to(output)
            return output

        def hold(value: Tensor | str) -> Callable:
            def hook(_module: object, _args: object, output: Tensor | tuple) -> Tensor | tuple:
                hidden = hidden_of(output).clone()
                hidden[1:, token] = hidden[0, token] if isinstance(value, str) else value
                return with_hidden(output, hidden)

            return hook

        def keep_value(site: tuple[str, int], store: dict) -> Callable:
            def hook(_module: object, _args: object, output: Tensor | tuple) -> None:
                store[site] = hidden_of(output)[1:, token].clone()

            return hook

        with ExitStack() as hooks, torch.inference_mode():
            hooks.callback(self.model.anatomy.embedding.register_forward_hook(corrupt).remove)
            for (kind, layer), value in held.items():
                hooks.callback(self.modules[kind][layer].register_forward_hook(hold(value)).remove)
            for kind, layer in keep[0] if keep else ():
                hook = keep_value((kind, layer), keep[1])
                hooks.callback(self.modules[kind][layer].register_forward_hook(hook).remove)
            logits = self.model.torch(input_ids=self.rows).logits
            return float(probability(logits[1:, -1], answer).mean())


def sweep_map(sweep: Sweep, name: str, answer: int, tokens: list[int]) -> Tensor:
    """The map `name` by the sweep, [token, layer, sample]."""
    if name == "state":
        return sweep.state_map(answer, tokens)
    if "severed" in name:
        return sweep.severed_map("mlp", answer, tokens)
    return sweep.window_map(name, answer, tokens, WINDOW)
