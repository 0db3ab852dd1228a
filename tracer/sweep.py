"""The numbers of `tracer.passes` for all sites at once: exact, and much cheaper.

The definition runs the whole model once a site. The sweep computes only what restoring a site can
change, from facts that hold exactly:

- below the restored layer nothing differs from the corrupted run: a row starts there;
- before the restored token nothing differs (attention is causal): only the tokens from it on are
  computed, keys and values of the others come from the corrupted run;
- before the subject nothing is corrupted: the effect is 0 and nothing is computed;
- in a state map the subject's first token, once restored, stays clean for ever;
- windows clipped at layer 0 are the same row until the first of them ends;
- only the last position goes through the unembedding.

One walk up the layers serves all columns of a map: rows join when their layer is reached (a
staircase), so a weight is read once a layer, not once a site. `tracer.packing` says how the rows
are laid out; the blocks that run are the model's own (`tracer.replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tracer.anatomy import SubLayer
from tracer.errors import SweepMismatchError
from tracer.model import LanguageModel
from tracer.packing import Packing, Row, bundles, state_rows, window_rows
from tracer.passes import Passes, probability
from tracer.replay import Recording, output_changed, record

PACKED_TOKENS = 1024  # tokens in one call of a block: enough for a good matrix product, few enough for the cache
BUNDLE_PAIRS = 512  # pairs packed into one sequence: attention is quadratic in them
STATE_BYTES = 1 << 30  # states of one staircase; more samples than fit are walked one chunk after the other
UNEMBED_ROWS = 128


@dataclass(frozen=True)
class Hold:
    """A sub-layer whose output at the restored token is overwritten while a row holds it.

    Attributes:
        values: for each layer [1 or sample, token, d_model].
    """

    path: SubLayer
    values: list[Tensor]


class Sweep:
    """All maps of one prompt. Has the methods of `tracer.passes.Passes`, with the same results.

    Attributes:
        run: the recorded pass; row 0 is clean, the others are the corrupted samples.
        clean_logits: [vocab].
        corrupted_logits: [sample, vocab].
    """

    def __init__(self, model: LanguageModel, ids: Tensor, subject_span: tuple[int, int], noise: Tensor) -> None:
        self.model, self.samples = model, len(noise)
        self.n_tokens, self.first = ids.shape[1], subject_span[0]
        with torch.inference_mode():
            rows = ids.expand(self.samples + 1, -1)
            self.run: Recording = record(model, rows, noise=noise, subject_span=subject_span)
            logits = model.anatomy.unembed(self.run.outputs[-1][:, -1])
        self.clean_logits, self.corrupted_logits = logits[0], logits[1:]

    def state_map(self, answer_id: int, tokens: list[int]) -> Tensor:
        """Restored probabilities of every state, [token, layer, sample]."""
        # The last token's own restored state is what the answer is read from, so it stays packed.
        clean_token = self.first if self.first < self.n_tokens - 1 else None
        rows = state_rows(self.model.n_layers)
        restored = self._walk(rows, answer_id, tokens, self._join_state, clean_token=clean_token)
        return self._last_column(restored, answer_id, tokens)

    def severed_map(self, path: SubLayer, answer_id: int, tokens: list[int]) -> Tensor:
        """Restored probabilities of every state with `path` severed, [token, layer, sample]."""
        rows = state_rows(self.model.n_layers, held=range(self.model.n_layers))
        corrupted = Hold(path, [added[1:] for added in self.run.added[path]])
        restored = self._walk(rows, answer_id, tokens, self._join_state, hold=corrupted)
        return self._last_column(restored, answer_id, tokens)

    def window_map(self, kind: SubLayer, answer_id: int, tokens: list[int], window: int) -> Tensor:
        """Restored probabilities of every window of MLPs or attentions, [token, layer, sample]."""
        clean = Hold(kind, [added[:1] for added in self.run.added[kind]])

        def join(row: Row, packing: Packing, samples: Tensor) -> Tensor:
            return self._join_window(row, packing, samples, clean)

        rows = window_rows(window, self.model.n_layers)
        return self._walk(rows, answer_id, tokens, join, hold=clean)

    def _join_state(self, row: Row, packing: Packing, samples: Tensor) -> Tensor:
        """Outputs of the block below: corrupted, the restored tokens clean; [sample, pair, d_model]."""
        outputs, restored = self.run.outputs[row.start - 1], packing.diagonal().computed
        hidden = outputs[1 + samples][:, packing.computed]
        hidden[:, : packing.n_diagonal] = outputs[0, restored]
        return hidden

    def _join_window(self, row: Row, packing: Packing, samples: Tensor, clean: Hold) -> Tensor:
        """Outputs of the window's first block, where only the restored tokens differ from the corrupted run."""
        layer, diagonal = row.start - 1, packing.diagonal()
        hidden = self.run.outputs[layer][1 + samples][:, packing.computed]
        inputs = self.run.inputs[layer][1 + samples][:, diagonal.computed]
        restored = clean.values[layer][:, diagonal.computed].expand_as(inputs)
        with output_changed(self.model.anatomy.site_module(clean.path, layer), lambda _: restored):
            hidden[:, : packing.n_diagonal] = self.block(layer, diagonal)(inputs, samples)
        return hidden

    def _walk(
        self,
        rows: list[Row],
        answer_id: int,
        tokens: list[int],
        join: Callable[[Row, Packing, Tensor], Tensor],
        *,
        hold: Hold | None = None,
        clean_token: int | None = None,
    ) -> Tensor:
        """Restored probabilities [token, layer, sample]; p_corrupted where no row answers for a cell."""
        corrupted = probability(self.corrupted_logits, answer_id)
        result = corrupted.expand(len(tokens), self.model.n_layers, -1).clone()
        groups = [token for token in tokens if token >= self.first]
        with torch.inference_mode():
            for bundle in bundles(groups, self.n_tokens, BUNDLE_PAIRS) if rows else []:
                packing = Packing.of(bundle, self.n_tokens, clean_token)
                places = torch.tensor([tokens.index(token) for token in bundle], device=result.device)
                for samples in self._sample_chunks(len(rows), len(packing)):
                    staircase = _Staircase(self, packing, samples, hold, len(rows))
                    staircase.climb(rows, join)
                    for row, answers in staircase.probabilities(answer_id):
                        for column in row.columns:
                            result[places[:, None], column, samples] = answers
        return result

    def _last_column(self, restored: Tensor, answer_id: int, tokens: list[int]) -> Tensor:
        """A state restored in the last block changes the answer at the last position only: p_clean there."""
        if self.n_tokens - 1 in tokens:
            restored[tokens.index(self.n_tokens - 1), -1] = probability(self.clean_logits, answer_id)
        return restored

    def block(self, layer: int, packing: Packing) -> Callable[[Tensor, Tensor], Tensor]:
        """Block `layer` as a function of packed rows and the sample that each row belongs to."""
        keys, values = (self._prefix(store[layer], packing) for store in (self.run.keys, self.run.values))
        seen = packing.mask(self.run.visible[layer][0].cpu())[None].to(keys.device)
        positions, key_positions = (
            places.to(keys.device) for places in (packing.computed, packing.key_positions(self.n_tokens))
        )
        mask = self.run.attention_mask(layer, seen, positions, key_positions)

        def run(hidden: Tensor, samples: Tensor) -> Tensor:
            return self.run.run_block(
                layer,
                hidden,
                positions=positions,
                key_positions=key_positions,
                mask=mask,
                keys=keys[samples],
                values=values[samples],
            )

        return run

    def _prefix(self, store: Tensor, packing: Packing) -> Tensor:
        """Keys or values of tokens 0 .. T-2 in the corrupted runs, then of `clean_token` in the clean run."""
        prefix = store[1:, :, :-1]
        if packing.clean_token is None:
            return prefix
        clean = store[:1, :, packing.clean_token : packing.clean_token + 1]
        return torch.cat((prefix, clean.expand(self.samples, -1, -1, -1)), dim=2)

    def _sample_chunks(self, n_rows: int, n_pairs: int) -> Iterator[Tensor]:
        bytes_each = n_rows * n_pairs * self.model.d_model * self.run.outputs[0].element_size()
        together = max(1, STATE_BYTES // max(1, bytes_each))
        yield from torch.arange(self.samples, device=self.clean_logits.device).split(together)


class _Staircase:
    """The rows that have joined so far, for one chunk of samples: states [row, sample, pair, d_model]."""

    def __init__(self, sweep: Sweep, packing: Packing, samples: Tensor, hold: Hold | None, n_rows: int) -> None:
        self.sweep, self.packing, self.samples, self.hold = sweep, packing, samples, hold
        self.rows: list[Row] = []
        shape = (n_rows, len(samples), len(packing), sweep.model.d_model)
        self.states = sweep.run.outputs[0].new_empty(shape)

    def climb(self, rows: list[Row], join: Callable[[Row, Packing, Tensor], Tensor]) -> None:
        """From layer 0 to the top; a row joins just below its first block."""
        n_layers = self.sweep.model.n_layers
        for layer in range(n_layers + 1):
            for row in rows:
                if row.start == layer:
                    parent = self.states[self.rows.index(row.parent)] if row.parent else None
                    joining = join(row, self.packing, self.samples) if parent is None else parent
                    self.states[len(self.rows)] = joining
                    self.rows.append(row)
            if layer < n_layers and self.rows:
                self._run(layer)

    def _run(self, layer: int) -> None:
        """One block over all rows, in calls of about PACKED_TOKENS tokens."""
        block = self.sweep.block(layer, self.packing)
        states = self.states[: len(self.rows)].flatten(0, 1)  # a view: [row * sample, pair, d_model]
        samples = self.samples.repeat(len(self.rows))
        held = torch.tensor([layer in row.held for row in self.rows]).repeat_interleave(len(self.samples))
        together = max(1, PACKED_TOKENS // len(self.packing))
        for at in range(0, len(states), together):
            chunk = slice(at, at + together)
            with self._overwritten(layer, held[chunk], samples[chunk]):
                states[chunk] = block(states[chunk], samples[chunk])

    def _overwritten(self, layer: int, held: Tensor, samples: Tensor) -> AbstractContextManager[None]:
        """Puts the held values into the sub-layer's output, at the restored tokens of the rows that hold."""
        if self.hold is None or not held.any():
            return nullcontext()
        restored = self.packing.diagonal().computed
        values = self.hold.values[layer][:, restored]
        values = values.expand(len(held), -1, -1) if len(values) == 1 else values[samples]
        held = held.to(values.device)

        def change(output: Tensor) -> Tensor:
            output = output.clone()
            output[held, : len(restored)] = values[held]
            return output

        return output_changed(self.sweep.model.anatomy.site_module(self.hold.path, layer), change)

    def probabilities(self, answer_id: int) -> Iterator[tuple[Row, Tensor]]:
        """For each row, the answer's probability [group, sample]."""
        unembed = self.sweep.model.anatomy.unembed
        final = self.states[:, :, self.packing.last(self.sweep.n_tokens)]  # [row, sample, group, d_model]
        chunks = final.flatten(0, 2).split(UNEMBED_ROWS)
        answers = torch.cat([probability(unembed(chunk), answer_id) for chunk in chunks]).reshape(final.shape[:3])
        yield from ((row, answer.T) for row, answer in zip(self.rows, answers, strict=True))


def self_test(model: LanguageModel) -> float:
    """Compares sweep and definition on a few sites of a made-up prompt.

    Returns:
        The largest difference in log-probability.

    Raises:
        SweepMismatchError: they differ by more than rounding explains.
    """
    ids, span, layer, window = torch.arange(5, 11, device=model.device)[None], (1, 3), model.n_layers // 2, 3
    with torch.inference_mode():
        sigma = float(model.anatomy.embedding(ids).float().std())
    noise = torch.from_numpy(
        3 * sigma * np.random.RandomState(1).randn(2, span[1] - span[0], model.anatomy.embedding_size)
    )
    passes, sweep = Passes(model, ids, span, noise), Sweep(model, ids, span, noise)
    answer, token = int(passes.clean_logits.argmax()), span[1] - 1
    pairs = [
        (passes.state(token, layer), sweep.state_map(answer, [token])),
        (passes.severed("mlp", token, layer), sweep.severed_map("mlp", answer, [token])),
        (passes.severed("attn", token, layer), sweep.severed_map("attn", answer, [token])),
        (passes.window("mlp", token, layer, window), sweep.window_map("mlp", answer, [token], window)),
        (passes.window("attn", token, layer, window), sweep.window_map("attn", answer, [token], window)),
    ]
    slow = torch.stack([probability(passes.restored(held), answer) for held, _ in pairs]).log()
    fast = torch.stack([found[0, layer] for _, found in pairs]).log()
    worst = float((slow - fast).abs().max())
    allowed = 2e-3 if model.dtype in (torch.float32, torch.float64) else 0.3
    if not worst <= allowed:
        raise SweepMismatchError(
            f"On {model.name} the sweep differs from the definition by {worst:.2g} in log-probability. "
            f'Trace with engine="passes", and please report this model.'
        )
    model.sweep_checked = True
    return worst
