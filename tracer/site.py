"""Places in a model that can be restored, and the windows of layers around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tracer.errors import SiteError

Kind = Literal["state", "mlp", "attn", "cross"]
KINDS: tuple[Kind, ...] = ("state", "mlp", "attn")  # those of every model
ALL_KINDS: tuple[Kind, ...] = get_args(Kind)
Direction = Literal["restore", "corrupt"]
SEVERABLE = ("mlp", "attn", "cross")
Tokens = int | tuple[int, ...]  # one position, or several that are restored together
TokenGroups = Sequence[Tokens]


@dataclass(frozen=True)
class Site:
    """One activation of one token. Layers and tokens count from 0.

    `state` is the output of block `layer`; `mlp` and `attn` are what those sub-layers add to the
    residual stream, and `cross` what the cross-attention of an encoder-decoder's decoder adds.
    """

    kind: Kind
    layer: int
    token: int

    def __str__(self) -> str:
        return f"{self.kind}[{self.layer}]@{self.token}"


def together(tokens: Tokens) -> tuple[int, ...]:
    """The positions of tokens that are restored together, in their order, each once."""
    return (tokens,) if isinstance(tokens, int) else tuple(sorted(set(tokens)))


UnitKind = Literal["head", "neuron"]


@dataclass(frozen=True)
class Unit:
    """A part of a sub-layer: the columns [begin, end) of the input of its output matrix.

    A head is its slice of all heads side by side, a neuron is one column of the MLP's activations.
    """

    kind: UnitKind
    layer: int
    begin: int
    end: int


def window_layers(centre: int, window: int, n_layers: int, *, first: int = 0) -> range:
    """The layers restored together around `centre`: [c - w//2, c + ceil(w/2)), clipped to [first, n_layers).

    Source: Meng et al. 2022, sec. 2.2 (windows of 10) and the authors' published tracer.
    """
    return range(max(first, centre - window // 2), min(n_layers, centre - (-window // 2)))


def proportional_window(n_layers: int) -> int:
    """A window as wide, for this many layers, as the published 10 are for GPT-2 XL's 48.

    Wide windows in a small model blur where a fact is: all that hold the decisive layer look alike.
    """
    return max(1, round(n_layers * 10 / 48))


def severed_name(sub_layer: str) -> str:
    """The key of a severed map: "state | mlp severed"."""
    return f"state | {sub_layer} severed"


def check_kinds(kinds: Sequence[str], severed: Sequence[object]) -> None:
    """Raises SiteError for a kind or severed path that does not exist, or a bare string in place of a sequence."""
    for name, value in (("kinds", kinds), ("severed", severed)):
        if isinstance(value, str):
            raise SiteError(f"{name} is a sequence: write {name}=({value!r},).")
    for kind in kinds:
        if kind not in ALL_KINDS:
            raise SiteError(f"There is no kind {kind!r}. Choose from {', '.join(ALL_KINDS)}.")
    for path in severed:
        if isinstance(path, str) and path not in SEVERABLE:
            raise SiteError(f"{path!r} cannot be severed. Choose from {', '.join(SEVERABLE)}.")
    if not kinds and not severed:
        raise SiteError('Nothing to trace: give kinds=("state", "mlp", "attn") or severed=("mlp",).')
