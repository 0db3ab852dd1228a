"""Which paths a severed map cuts: a sub-layer's outputs held at corrupted values while a state is restored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tracer.anatomy import SubLayer
from tracer.errors import FactError, SiteError
from tracer.fact import TokenizedFact
from tracer.groups import group_name, group_tokens, whole_numbers
from tracer.site import SEVERABLE, severed_name

WRITTEN = re.compile(r"(?P<path>\w+)(:(?P<first>\d+)(-(?P<last>\d+))?)?(@(?P<tokens>.+))?")


@dataclass(frozen=True)
class Severed:
    """A sub-layer held at its corrupted values, in some layers and at some tokens.

    Attributes:
        path: the sub-layer, "mlp" or "attn"; of an encoder-decoder's decoder also "cross".
        layers: in which it is held; None: in all.
        tokens: where it is held: "subject", a role, or positions; None: at the restored token alone,
            as in the paper (Meng et al. 2022, sec. 2.2).

    Raises:
        SiteError: another path, no layers, or no tokens.
    """

    path: SubLayer
    layers: Sequence[int] | None = None
    tokens: str | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.path not in SEVERABLE:
            raise SiteError(f"{self.path!r} cannot be severed. Choose from {', '.join(SEVERABLE)}.")
        if self.layers is not None:
            layers = whole_numbers(self.layers)
            if not layers:
                raise SiteError(f"layers={self.layers!r} names no layers. Write layers=range(3, 8), or None for all.")
            object.__setattr__(self, "layers", tuple(sorted(set(layers))))
        if self.tokens is not None:
            group_name(self.tokens)  # or an error that says what to write
            chosen = self.tokens if isinstance(self.tokens, str) else whole_numbers(self.tokens)
            object.__setattr__(self, "tokens", chosen)

    @classmethod
    def of(cls, path: SubLayer | Severed) -> Severed:
        """From a sub-layer's name, which severs it in every layer at the restored token, or as it is."""
        return path if isinstance(path, Severed) else cls(path)

    @classmethod
    def parsed(cls, written: str) -> Severed:
        """From the command line: "mlp", "mlp:3-7" (layers), "mlp@last token" or "mlp:3-7@last token"."""
        found = WRITTEN.fullmatch(written.strip())
        if found is None:
            raise SiteError(f"{written!r} is no severed path. Write e.g. mlp, mlp:3-7 or mlp:3-7@last token.")
        about: dict[str, Any] = found.groupdict()
        layers = None
        if about["first"] is not None:
            layers = range(int(about["first"]), int(about["last"] or about["first"]) + 1)
        return cls(about["path"], layers, about["tokens"])

    @property
    def positions(self) -> tuple[int, ...] | None:
        """The tokens at which it is held, once `at` has found them; None: the restored ones."""
        assert not isinstance(self.tokens, str)
        return None if self.tokens is None else tuple(self.tokens)

    @property
    def name(self) -> str:
        """The key of its map, e.g. "state | mlp severed" or "state | mlp severed, layers 3-7, last token"."""
        parts = [severed_name(self.path)]
        if self.layers is not None:
            parts.append(f"layers {_ranges(self.layers)}")
        if self.tokens is not None:
            parts.append(group_name(self.tokens))
        return ", ".join(parts)

    def layers_in(self, n_layers: int) -> range | tuple[int, ...]:
        """The layers in which it is held.

        Raises:
            SiteError: the model has fewer.
        """
        if self.layers is None:
            return range(n_layers)
        if not 0 <= self.layers[0] <= self.layers[-1] < n_layers:
            raise SiteError(f"{self.name!r} is outside this model, which has layers 0 to {n_layers - 1}.")
        return tuple(self.layers)

    def at(self, fact: TokenizedFact) -> Severed:
        """With positions in this fact's prompt in place of a role.

        Raises:
            FactError: no token of the prompt has that role.
        """
        if self.tokens is None:
            return self
        tokens = group_tokens(fact, self.tokens)
        if not tokens:
            raise FactError(f"The prompt has no {group_name(self.tokens)}, so nothing is severed there.")
        return Severed(self.path, self.layers, tokens)


def _ranges(layers: Sequence[int]) -> str:
    """Runs of layers in words, e.g. "3-7, 9"."""
    found: list[list[int]] = []
    for layer in layers:
        if found and found[-1][-1] == layer - 1:
            found[-1].append(layer)
        else:
            found.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found)
