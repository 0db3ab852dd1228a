"""One forward pass with nnsight: the subject corrupted, sites held at given values, activations kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import nnsight
import torch
from torch import Tensor

from tracer.corrupt import Draws
from tracer.errors import SiteError
from tracer.model import LanguageModel
from tracer.model.inputs import inputs_of
from tracer.model.lock import lock_of
from tracer.model.prompt_ends import prompts_end_at
from tracer.site import ALL_KINDS, Kind, Site, Unit, UnitKind
from tracer.units import matrices_of


@dataclass
class Run:
    """What one pass returned.

    Attributes:
        read: logits of the last positions, [row, position, vocab].
        kept: states and what sub-layers add by kind and layer, [row, token, d_model]; tokens are those of the
            layer's stack. "cross" begins with the decoder's first layer.
        units: what came into each layer's head or value matrix, [row, token, width].
    """

    read: Tensor
    kept: dict[Kind, list[Tensor]] = field(default_factory=dict)
    units: list[Tensor] = field(default_factory=list)

    @property
    def logits(self) -> Tensor:
        """At the first of the positions read, [row, vocab]."""
        return self.read[:, 0]


def forward(
    model: LanguageModel,
    ids: Tensor,
    *,
    subject_span: tuple[int, int] = (0, 0),
    draws: Draws | None = None,
    held: Mapping[Site, Tensor] | None = None,
    held_unit: tuple[Unit, int, Tensor] | None = None,
    keep: bool = False,
    keep_units: UnitKind | None = None,
    positions: int = 1,
    n_encoder: int = 0,
) -> Run:
    """One pass: the subject corrupted if `draws` are given, every site of `held` forced to its value.

    Args:
        model: the model.
        ids: the prompt, [row, token].
        subject_span: tokens [begin, end) that are corrupted.
        draws: of one fact, a sample for each row.
        held: site -> value, [d_model] or [row, d_model].
        held_unit: a head or neuron, the token, and its value there, [width of the unit] or [row, width].
        keep: keep every state, MLP and attention output.
        keep_units: keep what comes into every head matrix, or value matrix.
        positions: how many of the last positions to read.
        n_encoder: how many of the tokens an encoder reads; 0: there is none.

    Raises:
        SiteError: a site at a token that its block does not read.
    """
    begin, end = subject_span
    nn, embedding, rows = model.nnsight, model.anatomy.names.embedding, len(ids)
    noise, replaces = (None, False) if draws is None else (draws.values[0], draws.replaces)
    visits = _visits(model, held or {}, held_unit, keep, keep_units, n_encoder)
    options: dict[str, Any] = inputs_of(ids, n_encoder)
    first = options.pop("input_ids")
    options |= {} if n_encoder else {"logits_to_keep": positions}
    options |= {"remote": model.remote} if model.remote else {}
    ends = [ids.shape[1] - n_encoder - positions] * rows if model.edits else None  # tokens of the answer may follow
    said = nullcontext() if ends is None else prompts_end_at(model, ends)
    with said, lock_of(model.torch), torch.inference_mode(), nn.trace(first, **options):
        # Plain values alone in here: the block may be sent to a machine that has no `tracer`.
        kept = nnsight.save({})
        if noise is not None:
            embedded = nn.get(embedding).output
            subject = embedded[:, begin:end]
            embedded[:, begin:end] = noise.to(subject) if replaces else subject + noise.to(subject)
        for path, side, writes, name in visits:
            found = nn.get(path).input if side == "input" else nn.get(path).output
            found = found if isinstance(found, torch.Tensor) else found[0]
            hidden = found.unflatten(0, (rows, -1)) if found.dim() == 2 else found
            for token, left, right, value in writes:
                hidden[:, token, left:right] = value.to(hidden)
            if name:
                kept.setdefault(name, []).append(hidden.detach().clone())
        read = nnsight.save(nn.output.logits[:, -positions:].detach())
    return Run(read, {kind: kept.get(kind, []) for kind in ALL_KINDS}, kept.get("units", []))


Visit = tuple[str, str, Sequence[tuple[int, int | None, int | None, Tensor]], str]


def _visits(
    model: LanguageModel,
    held: Mapping[Site, Tensor],
    held_unit: tuple[Unit, int, Tensor] | None,
    keep: bool,
    keep_units: UnitKind | None,
    n_encoder: int,
) -> list[Visit]:
    """The modules where a pass reads or writes, in the order in which they run.

    Each is its path, "input" or "output" of it, what is written there as (token, first column, last column,
    value), and the name under which it is kept, or "".
    """
    found: list[Visit] = []
    unit_kind = held_unit[0].kind if held_unit else keep_units
    unit_site = None if unit_kind is None else {"head": "attn", "neuron": "mlp"}[unit_kind]
    for layer in range(model.n_layers):
        for kind in model.anatomy.kinds_in(layer):
            if unit_kind is not None and kind == unit_site:
                unit_writes = []
                if held_unit and layer == held_unit[0].layer:
                    unit, token, value = held_unit
                    unit_writes.append((token, unit.begin, unit.end, value))
                if unit_writes or keep_units:
                    path = _matrix_path(model, unit_kind, layer)
                    found.append((path, "input", unit_writes, "units" if keep_units else ""))
            sites = [site for site in _in_order(held) if site.layer == layer and site.kind == kind]
            if sites or keep:
                writes = [(place_of(model, site, n_encoder), None, None, held[site]) for site in sites]
                found.append((_site_path(model, kind, layer), "output", writes, kind if keep else ""))
    return found


def _in_order(held: Mapping[Site, Tensor]) -> list[Site]:
    return sorted(held, key=lambda site: (site.layer, site.kind, site.token))


def place_of(model: LanguageModel, site: Site, n_encoder: int) -> int:
    """Which of the tokens of its block's stack a site is at.

    Raises:
        SiteError: that stack does not read the site's token.
    """
    found = model.anatomy.place(site.layer, site.token, n_encoder)
    if found is None:
        stacks = [f"layers {s.layers.start} to {s.layers.stop - 1} ({s.name})" for s in model.anatomy.stacks]
        raise SiteError(
            f"{site} is nowhere: the encoder reads tokens 0 to {n_encoder - 1} and the decoder those after, in "
            f"{' and '.join(stacks)}."
        )
    return found


def _site_path(model: LanguageModel, kind: Kind, layer: int) -> str:
    return model.anatomy.block_path(layer) if kind == "state" else model.anatomy.site_path(kind, layer)


def _matrix_path(model: LanguageModel, kind: UnitKind, layer: int) -> str:
    names = model.anatomy.names
    matrices_of(model, kind)  # or an error that says which is missing
    return f"{names.blocks}.{layer}.{names.head_matrix if kind == 'head' else names.value_matrix}"
