"""THE DEFINITION of causal tracing: one forward pass (`tracer.forward_pass`) for each site, with nnsight.

    clean       run the prompt and keep every activation
    corrupted   run it with noise on the embeddings of the subject's tokens
    restored    run it corrupted, but hold some sites at given values

A restored state holds h[l][i] at its clean value; a restored MLP or attention holds a window of
layers; a severed trace holds the state clean and every MLP (attention) output of the same token at
its *corrupted* value (Meng et al. 2022, sec. 2.1, 2.2). All passes of a fact see the same noise.

In an encoder-decoder a row holds the encoder's tokens and then the decoder's; the subject is corrupted
in the encoder, and a token has sites in the blocks of the stack that reads it.

This is slow and plain on purpose: `tracer.sweep` (`tracer.sweep.two_stacks`) must give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from tracer.anatomy import SubLayer
from tracer.corrupt import Draws
from tracer.engine import Map
from tracer.forward_pass import Run, forward, place_of
from tracer.metric import METRICS, Metric
from tracer.model import LanguageModel
from tracer.precision import wide
from tracer.reading import AnswerIds, Answers, Reading, answer_table
from tracer.severed import Severed
from tracer.site import Direction, Kind, Site, TokenGroups, Tokens, Unit, together, window_layers


class Passes:
    """The three kinds of pass for one prompt, and the maps they make, one site at a time.

    Attributes:
        clean, corrupted: the runs with nothing held.
        reading: what the maps hold: a metric of an answer of one token or more. With more the prompt ends
            in all tokens of the answer but the last.
        direction: "restore": clean values into corrupted runs; "corrupt": corrupted values into clean runs.
        frozen: what severed sub-layers are held at: the run's own values with nothing held, or those of
            `frozen_noise`, as in the published severed trace, whose two passes draw different noise.
    """

    def __init__(
        self,
        model: LanguageModel,
        ids: Tensor,
        subject_span: tuple[int, int],
        noise: Draws | Tensor,
        *,
        frozen_noise: Draws | Tensor | None = None,
        metric: Metric = METRICS["probability"],
        other_ids: Sequence[int] | None = None,
        direction: Direction = "restore",
        answer_length: int = 1,
        n_encoder: int = 0,
    ) -> None:
        self.model, self.span, self.draws, self.n_encoder = model, subject_span, Draws.of(noise), n_encoder
        self.reading, self.direction = Reading(metric, answer_length), direction
        self.others = None if other_ids is None else torch.tensor(list(other_ids), device=ids.device)
        self.rows = ids.expand(self.draws.samples, -1)
        read: dict[str, Any] = {"positions": answer_length, "n_encoder": n_encoder}
        self.clean = forward(model, ids, keep=True, **read)
        corrupt = partial(forward, model, self.rows, subject_span=subject_span, keep=True, **read)
        self.corrupted = corrupt(draws=self.draws)
        self.frozen = self.corrupted if direction == "restore" else self.clean
        if frozen_noise is not None:
            self.frozen = corrupt(draws=Draws.of(frozen_noise))

    @property
    def clean_logits(self) -> Tensor:
        """Next-token logits of the clean run, [vocab]."""
        return self.clean.logits[0]

    @property
    def corrupted_logits(self) -> Tensor:
        """Next-token logits of each corrupted run, [sample, vocab]."""
        return self.corrupted.logits

    def state(self, tokens: Tokens, layer: int) -> Mapping[Site, Tensor]:
        """Holds the output of one block at some tokens at its clean value (corrupted, in that direction).

        Nothing is held, here and in the next two, where the block's stack reads none of the tokens.
        """
        return {site: self._source_value(site) for site in self._sites("state", [layer], tokens)}

    def window(self, kind: SubLayer, tokens: Tokens, layer: int, window: int) -> Mapping[Site, Tensor]:
        """Holds what a sub-layer adds in a window of layers at clean values."""
        stack = self.model.anatomy.stack(layer).layers
        layers = window_layers(layer, window, stack.stop, first=stack.start)
        return {site: self._source_value(site) for site in self._sites(kind, layers, tokens)}

    def severed(self, path: SubLayer | Severed, tokens: Tokens, layer: int) -> Mapping[Site, Tensor]:
        """Holds the state clean, and the sub-layer `path` of its tokens (or of others) corrupted."""
        cut, state = Severed.of(path), self.state(tokens, layer)
        at = together(tokens) if cut.positions is None else cut.positions
        sites = self._sites(cut.path, cut.layers_in(self.model.n_layers), at) if state else []
        return {**{site: self._value(self.frozen, site) for site in sites}, **state}

    def unit_map(self, units: Sequence[Unit], answer_id: AnswerIds, tokens: Sequence[int]) -> Tensor:
        """The metric with each head or neuron of one kind set alone, [token, unit, sample]."""
        draws = None if self.direction == "corrupt" else self.draws
        options = {"draws": draws, "subject_span": self.span, "positions": self.reading.length}
        if self.direction == "restore":
            source = forward(self.model, self.rows, keep_units=units[0].kind, positions=self.reading.length).units
        else:
            corrupted = {"draws": self.draws, "subject_span": self.span, "positions": self.reading.length}
            source = forward(self.model, self.rows, keep_units=units[0].kind, **corrupted).units
        cells = []
        for token in tokens:
            for unit in units:
                value = source[unit.layer][:, token, unit.begin : unit.end]
                run = forward(self.model, self.rows, held_unit=(unit, token, value), **options)
                cells.append(self._measured(run, answer_id))
        return torch.stack(cells).unflatten(0, (len(tokens), len(units)))

    def restored(self, held: Mapping[Site, Tensor]) -> Tensor:
        """Logits of the corrupted run (the clean one, if corrupting), sites held; [sample, vocab]."""
        return self._run(held).logits

    def _run(self, held: Mapping[Site, Tensor]) -> Run:
        draws = self.draws if self.direction == "restore" else None
        options = {"held": held, "positions": self.reading.length, "n_encoder": self.n_encoder}
        return forward(self.model, self.rows, subject_span=self.span, draws=draws, **options)

    def unrestored(self, answer_id: AnswerIds) -> tuple[Tensor, Tensor]:
        """The metric of the clean run, [1], and of the corrupted ones, [sample]."""
        return self._measured(self.clean, answer_id), self._measured(self.corrupted, answer_id)

    def state_map(self, answer_id: AnswerIds, tokens: TokenGroups) -> Tensor:
        """The metric with every state restored, [token, layer, sample]."""
        return self._map(answer_id, tokens, self.state)

    def window_map(self, kind: SubLayer, answer_id: AnswerIds, tokens: TokenGroups, window: int) -> Tensor:
        """The metric with every window of MLPs or attentions restored, [token, layer, sample]."""
        return self._map(answer_id, tokens, lambda token, layer: self.window(kind, token, layer, window))

    def severed_map(self, path: SubLayer | Severed, answer_id: AnswerIds, tokens: TokenGroups) -> Tensor:
        """The metric with every state restored and `path` severed, [token, layer, sample]."""
        return self._map(answer_id, tokens, lambda token, layer: self.severed(path, token, layer))

    def _map(
        self, answer_id: AnswerIds, tokens: TokenGroups, held: Callable[[Tokens, int], Mapping[Site, Tensor]]
    ) -> Tensor:
        cells = [held(each, layer) for each in tokens for layer in range(self.model.n_layers)]
        found = torch.stack(self._cells(cells, answer_id))
        return found.unflatten(0, (len(tokens), self.model.n_layers))

    def _cells(self, cells: Sequence[Mapping[Site, Tensor]], answer_id: AnswerIds) -> list[Tensor]:
        """The metric with the sites of each cell held, [sample]; NaN where there are none."""
        nothing = self.corrupted.read.new_full((len(self.rows),), torch.nan)
        return [self._measured(self._run(held), answer_id) if held else wide(nothing) for held in cells]

    def _measured(self, run: Run, answer_id: AnswerIds) -> Tensor:
        n = len(run.read)
        answers = answer_table([answer_id], run.read.device).expand(n, -1)
        others = None if self.others is None else self.others.expand(n)
        clean = self.clean.logits.expand(n, -1)
        return self.reading.joined(self.reading.at_each(run.read, answers, others, clean))

    def _source_value(self, site: Site) -> Tensor:
        if self.direction == "restore":
            return self._value(self.clean, site)[0]
        return self._value(self.corrupted, site)

    def _value(self, run: Run, site: Site) -> Tensor:
        """What a run has at a site, [row, d_model]."""
        first = self.model.anatomy.n_encoder_layers if site.kind == "cross" else 0
        return run.kept[site.kind][site.layer - first][:, place_of(self.model, site, self.n_encoder)]

    def _sites(self, kind: Kind, layers: Iterable[int], tokens: Tokens) -> list[Site]:
        """The sites of this kind that there are: a block reads the tokens of its own stack."""
        anatomy = self.model.anatomy
        return [
            Site(kind, layer, token)
            for layer in layers
            for token in together(tokens)
            if anatomy.place(layer, token, self.n_encoder) is not None and kind in anatomy.kinds_in(layer)
        ]


class BatchPasses:
    """`Passes` for several prompts, one after the other.

    Attributes:
        each: of each prompt.
    """

    kind: ClassVar[type[Passes]] = Passes

    def __init__(
        self,
        model: LanguageModel,
        ids: Tensor,
        subject_span: tuple[int, int],
        noise: Draws | Tensor,
        *,
        frozen_noise: Draws | Tensor | None = None,
        other_ids: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        draws, frozen = Draws.of(noise), None if frozen_noise is None else Draws.of(frozen_noise)
        self.each = [
            self.kind(
                model,
                row[None],
                subject_span,
                draws.of_fact(number),
                frozen_noise=None if frozen is None else frozen.of_fact(number),
                other_ids=None if other_ids is None else other_ids[number : number + 1],
                **options,
            )
            for number, row in enumerate(ids)
        ]

    @property
    def clean_logits(self) -> Tensor:
        """Next-token logits of each fact's clean run, [fact, vocab]."""
        return torch.stack([passes.clean_logits for passes in self.each])

    @property
    def corrupted_logits(self) -> Tensor:
        """[fact * sample, vocab]."""
        return torch.cat([passes.corrupted_logits for passes in self.each])

    def state_maps(self, answer_ids: Answers, tokens: TokenGroups) -> Map:
        """The metric with every state restored."""
        return self._of_each(answer_ids, lambda passes, answer: passes.state_map(answer, tokens))

    def window_maps(self, kind: SubLayer, answer_ids: Answers, tokens: TokenGroups, window: int) -> Map:
        """The metric with every window of MLPs or attentions restored."""
        return self._of_each(answer_ids, lambda passes, answer: passes.window_map(kind, answer, tokens, window))

    def severed_maps(self, path: SubLayer | Severed, answer_ids: Answers, tokens: TokenGroups) -> Map:
        """The metric with every state restored and `path` severed."""
        return self._of_each(answer_ids, lambda passes, answer: passes.severed_map(path, answer, tokens))

    def unit_maps(self, units: Sequence[Unit], answer_ids: Answers, tokens: Sequence[int]) -> Tensor:
        """The metric with each head or neuron of one kind set alone, [fact, token, unit, sample]."""
        return self._of_each(answer_ids, lambda passes, answer: passes.unit_map(units, answer, tokens))

    def unrestored(self, answer_ids: Answers) -> tuple[Tensor, Tensor]:
        """The metric of the clean runs, [fact], and of the corrupted ones, [fact * sample]."""
        found = [passes.unrestored(answer) for passes, answer in zip(self.each, answer_ids, strict=True)]
        clean, corrupted = zip(*found, strict=True)
        return torch.cat(clean), torch.cat(corrupted)

    def _of_each(self, answer_ids: Answers, map_of: Callable[[Passes, AnswerIds], Tensor]) -> Tensor:
        return torch.stack([map_of(passes, answer) for passes, answer in zip(self.each, answer_ids, strict=True)])
