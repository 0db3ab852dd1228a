"""The numbers of `tracer.passes` for all sites at once: exact, and much cheaper.

The definition runs the whole model once a site. The sweep computes only what restoring a site can
change, from facts that hold exactly:

- below the restored layer nothing differs from the corrupted run: a row starts there;
- before the restored token nothing differs (attention is causal): only the tokens from it on are
  computed, keys and values of the others come from the corrupted run;
- before the subject nothing is corrupted: the effect is 0 and nothing is computed;
- in a state map the subject's first token, once restored, stays clean for ever;
- windows clipped at layer 0 are the same row until the first of them ends;
- a held MLP is not computed where its output is overwritten;
- the last block is run for the positions that the answer is read from, and only these are unembedded.

One walk up the layers serves all columns of a map: rows join when their layer is reached (a
staircase), so a weight is read once a layer, not once a site. `tracer.sweep.packing` says how the rows
are laid out; the blocks that run are the model's own (`tracer.sweep.replay`). Facts of the same length
whose subjects span the same tokens are walked together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from tracer.anatomy import SubLayer
from tracer.corrupt import Draws
from tracer.engine import Map
from tracer.errors import SiteError
from tracer.metric import METRICS, Metric
from tracer.model import LanguageModel
from tracer.model.parallel import Check, in_threads, is_out_of_memory, thread_count
from tracer.reading import Answers, Reading, answer_table
from tracer.severed import Severed
from tracer.site import Direction, TokenGroups, Tokens, Unit, together
from tracer.sweep.budget import Budget
from tracer.sweep.hold import Hold, UnitHold
from tracer.sweep.packed_blocks import DrawRows, PackedBlocks
from tracer.sweep.packing import Packing, Row, bundles, in_order, severed_rows, state_rows, window_rows
from tracer.sweep.recording import record
from tracer.sweep.replay import Recording
from tracer.sweep.staircase import Join, Staircase
from tracer.units import matrices_of

PROBABILITY = METRICS["probability"]


class BatchSweep:
    """All maps of several facts of the same length whose subjects are the same tokens.

    A *draw* is one fact under one noise draw: draw d belongs to fact d // samples.

    Attributes:
        run: the recorded pass: a clean row for each fact, then a corrupted row for each draw.
        rows: which of these are a draw's: "restore" sets clean values into corrupted runs, "corrupt" the other way.
        blocks: the model's blocks on packed rows of them.
        logits: of the recorded rows where the answer is read, [row, position, vocab].
        clean_logits: at the first of these positions, [fact, vocab].
        corrupted_logits: [draw, vocab].
        reading: what the maps hold: a metric of an answer of one token or more. With more the prompts
            end in all tokens of the answer but the last.
        frozen: what severed sub-layers are held at, in the draws' rows; of the run itself, or of `frozen_noise`.
        budget: halved, and the walk begun again, when memory runs out.
    """

    def __init__(
        self,
        model: LanguageModel,
        ids: Tensor,
        subject_span: tuple[int, int],
        noise: Draws | Tensor,
        *,
        frozen_noise: Draws | Tensor | None = None,
        metric: Metric = PROBABILITY,
        other_ids: Sequence[int] | None = None,
        direction: Direction = "restore",
        answer_length: int = 1,
        budget: Budget | None = None,
    ) -> None:
        self.model, (self.n_facts, self.n_tokens) = model, ids.shape
        self.samples, self.first = Draws.of(noise).samples, subject_span[0]
        self.reading = Reading(metric, answer_length)
        self.read_from = self.n_tokens - answer_length
        self.others = None if other_ids is None else torch.tensor(list(other_ids), device=ids.device)
        self.budget = budget or Budget.of(ids.device)
        self.draws = torch.arange(self.n_facts * self.samples, device=ids.device)
        self.prompts, self.span, self.noise = ids, subject_span, Draws.of(noise)
        self.rows = DrawRows(self.n_facts, self.samples, direction)
        self.run = self._record(self.noise)
        self.blocks = PackedBlocks(self.run, self.rows)
        with torch.inference_mode():
            self.logits = model.anatomy.unembed(self.run.outputs[-1][:, self.read_from :])
        self.clean_logits, self.corrupted_logits = self.logits[: self.n_facts, 0], self.logits[self.n_facts :, 0]
        self.frozen = self.run.added
        if frozen_noise is not None:
            self.frozen = self._record(Draws.of(frozen_noise)).added

    def _record(self, draws: Draws, matrices: Sequence[nn.Module] = ()) -> Recording:
        begin, end = self.span

        def corrupt(embedded: Tensor) -> Tensor:
            embedded = embedded.clone()
            subjects = embedded[self.n_facts :, begin:end].unflatten(0, (self.n_facts, self.samples))
            embedded[self.n_facts :, begin:end] = draws.onto(subjects).flatten(0, 1)
            return embedded

        with torch.inference_mode():
            rows = torch.cat((self.prompts, self.prompts.repeat_interleave(self.samples, 0)))
            return record(self.model, rows, embedded=corrupt, matrices=matrices)

    def state_maps(self, answer_ids: Answers, tokens: TokenGroups) -> Map:
        """The metric with every state restored."""
        # The prompt's last token's own restored state is what the answer is read from, so it stays packed.
        clean_token = self.first if self.first < self.read_from else None
        rows = state_rows(self.model.n_layers)
        restored = self._walk(rows, answer_ids, tokens, self._join_state, clean_token=clean_token)
        return self._last_column(restored, answer_ids, tokens)

    def severed_maps(self, path: SubLayer | Severed, answer_ids: Answers, tokens: TokenGroups) -> Map:
        """The metric with every state restored and `path` severed."""
        cut = Severed.of(path)
        hold = Hold(self.model.anatomy, cut.path, self.frozen[cut.path])
        own, layers = self.frozen is self.run.added, cut.layers_in(self.model.n_layers)
        if not own and cut.tokens is not None:
            raise SiteError("The published severed trace severs the restored token: write Severed(...) without tokens.")
        rows = severed_rows(self.model.n_layers, from_below=not own, layers=layers)
        options = {"hold": hold, "held_rows": self.rows.base, "held": cut.positions}
        restored = self._walk(rows, answer_ids, tokens, self._join_state, **options)
        return self._last_column(restored, answer_ids, tokens)

    def window_maps(self, kind: SubLayer, answer_ids: Answers, tokens: TokenGroups, window: int) -> Map:
        """The metric with every window of MLPs or attentions restored."""
        hold = Hold(self.model.anatomy, kind, self.run.added[kind])
        rows = window_rows(window, self.model.n_layers)
        join = partial(self._join_window, hold)
        return self._walk(rows, answer_ids, tokens, join, hold=hold, held_rows=self.rows.source)

    def unit_maps(self, units: Sequence[Unit], answer_ids: Answers, tokens: TokenGroups) -> Tensor:
        """The metric with each head or neuron of one kind set alone, [fact, token, unit, sample]."""
        hold = UnitHold(
            matrices := matrices_of(self.model, units[0].kind), self._record(self.noise, matrices).matrix_inputs
        )
        rows = sorted((Row((n,), unit.layer + 1) for n, unit in enumerate(units)), key=lambda row: row.start)

        def join(row: Row, packing: Packing, draws: Tensor, below: Tensor | None) -> Tensor:
            unit = units[row.columns[0]]
            writing = partial(hold.writing, unit, self.rows.source(draws), packing.alone().computed)
            return self._join_first(row, packing, draws, writing)

        return self._walk(rows, answer_ids, tokens, join, hooks=hold, n_columns=len(units))

    def unrestored(self, answer_ids: Answers) -> tuple[Tensor, Tensor]:
        """The metric of the clean runs, [fact], and of the corrupted ones, [draw]."""
        each = self._at_each(torch.arange(self.n_facts, device=self.draws.device), answer_ids)
        corrupted = self._at_each(self.n_facts + self.draws, answer_ids)
        return self.reading.joined(each), self.reading.joined(corrupted)

    def _at_each(self, rows: Tensor, answer_ids: Answers) -> Tensor:
        """What is read at each position in rows of the recording, one a fact or one a draw; [position, row]."""
        of = self.draws // self.samples if len(rows) == len(self.draws) else rows
        answers = answer_table(answer_ids, of.device)[of]
        others = None if self.others is None else self.others[of]
        return self.reading.at_each(self.logits[rows], answers, others, self.clean_logits[of])

    def _join_state(self, row: Row, packing: Packing, draws: Tensor, below: Tensor | None) -> Tensor:
        """Outputs of the block below, the restored tokens clean; [draw, pair, d_model]."""
        layer = row.start - 1
        if layer < 0:  # the trunk of a severed map: nothing restored yet
            return self.run.inputs[0][self.rows.base(draws)][:, packing.computed]
        outputs, restored = self.run.outputs[layer], packing.alone().computed
        hidden = outputs[self.rows.base(draws)][:, packing.computed] if below is None else below.clone()
        hidden[:, : packing.n_restored] = outputs[self.rows.source(draws)][:, restored]
        return hidden

    def _join_window(self, hold: Hold, row: Row, packing: Packing, draws: Tensor, below: Tensor | None) -> Tensor:
        """Outputs of the window's first block, where only the restored tokens differ from the corrupted run."""
        if below is not None:  # a shorter window leaves its trunk
            return below
        writing = partial(hold.writing, row.start - 1, self.rows.source(draws), packing.alone().computed, 0)
        return self._join_first(row, packing, draws, writing)

    def _join_first(
        self, row: Row, packing: Packing, draws: Tensor, writing: Callable[[], AbstractContextManager[None]]
    ) -> Tensor:
        """The base run's outputs of the block below the row's first; those of the restored tokens computed anew."""
        layer, alone, rows = row.start - 1, packing.alone(), self.rows.base(draws)
        hidden = self.run.outputs[layer][rows][:, packing.computed]
        inputs = self.run.inputs[layer][rows][:, alone.computed]
        with writing():
            each = torch.arange(len(draws), device=draws.device)
            hidden[:, : packing.n_restored] = self.blocks.run(layer, alone, draws)(inputs, each)
        return hidden

    def _walk(
        self,
        rows: list[Row],
        answer_ids: Answers,
        tokens: TokenGroups,
        join: Join,
        *,
        hold: Hold | None = None,
        held_rows: Callable[[Tensor], Tensor] | None = None,
        held: Sequence[int] | None = None,
        hooks: Hold | UnitHold | None = None,
        n_columns: int | None = None,
        clean_token: int | None = None,
    ) -> Tensor:
        """The metric [fact, token, column, sample]; that of the base run where no row answers for a cell."""
        wanted = [self._differing(each) for each in tokens]
        places = {group: place for place, group in enumerate(in_order(wanted))}
        base = self.reading.joined(self._at_each(self.rows.base(self.draws), answer_ids))
        result = base.expand(len(places), n_columns or self.model.n_layers, -1).clone()
        answers = answer_table(answer_ids, self.draws.device)
        layout = {"held": held, "answer_length": self.reading.length, "device": self.draws.device}

        def climb(bundle: list[Tokens], draws: Tensor, check: Check) -> None:
            packing = Packing.of(bundle, self.n_tokens, clean_token, **layout)
            staircase = Staircase(self, packing, draws, len(rows), hold, held_rows)
            staircase.climb(rows, join, check)
            at = torch.tensor([places[group] for group in packing.groups], device=draws.device)
            for row, found in staircase.values(answers):
                for column in row.columns:
                    result[at[:, None], column, draws] = found

        groups = [group for group in places if group]
        while rows and groups:
            # Offloaded weights come and go with each call, slices are put together in each: one thread alone may do so.
            alone = self.model.is_offloaded or self.model.is_sharded
            workers = 1 if alone else thread_count(self.draws.device, len(self.draws))
            cut = bundles(groups, self.n_tokens, self.budget.bundle_pairs)
            chunks = self._chunks(len(rows), workers)
            try:
                with hooks.installed() if (hooks := hooks or hold) else nullcontext():
                    in_threads([partial(climb, *job) for job in product(cut, chunks)], workers)
                break
            except (RuntimeError, MemoryError) as error:
                # The other processes of a sharded model do not know that memory ran out in this one.
                if not is_out_of_memory(error) or self.model.is_sharded:
                    raise
                self.budget = self.budget.halved()  # or an error that says what to write
        found = result[[places[group] for group in wanted]]
        return found.unflatten(-1, (self.n_facts, self.samples)).movedim(-2, 0)

    def _chunks(self, n_rows: int, workers: int) -> tuple[Tensor, ...]:
        """The draws of each job: as many jobs as workers, more where their states do not fit."""
        pairs = min(self.budget.bundle_pairs, (self.n_tokens - self.first) * (self.n_tokens - self.first + 1) // 2)
        bytes_each = n_rows * pairs * self.model.d_model * self.run.outputs[0].element_size()
        fitting = max(1, self.budget.state_bytes // workers // max(1, bytes_each))
        return self.draws.split(min(fitting, -(-len(self.draws) // workers)))

    def _differing(self, tokens: Tokens) -> tuple[int, ...]:
        """Those of a group that the corruption can have changed: nothing differs before the subject."""
        return tuple(token for token in together(tokens) if token >= self.first)

    def _last_column(self, restored: Tensor, answer_ids: Answers, tokens: TokenGroups) -> Tensor:
        """A state restored in the last block changes what is read there alone: at the prompt's last token."""
        places = [place for place, each in enumerate(tokens) if self.read_from in together(each)]
        if places:
            each = self._at_each(self.rows.base(self.draws), answer_ids)
            each[0] = self._at_each(self.rows.source(self.draws), answer_ids)[0]
            found = self.reading.joined(each).unflatten(0, (self.n_facts, self.samples))
            restored[:, places, -1] = found[:, None]
        return restored
