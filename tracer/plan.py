"""What to trace and how: every option of a trace as one frozen, checked value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, TypedDict, get_args

from tracer.anatomy import SubLayer
from tracer.corrupt import Corruption, corruption_of
from tracer.engine import EngineName
from tracer.errors import SiteError
from tracer.fact import TokenizedFact, check_roles
from tracer.groups import Group, check_groups, group_tokens, whole_numbers
from tracer.metric import metric_named
from tracer.model import LanguageModel
from tracer.reading import JOINT
from tracer.severed import Severed
from tracer.site import KINDS, Direction, Kind, check_kinds

MOST_SEED = 2**32 - 1  # what numpy takes


class RunOptions(TypedDict, total=False):
    """Options of `tracer.trace` that say how the runs are made and measured."""

    samples: int
    seed: int
    corruption: Corruption | str | None
    metric: str
    direction: Direction
    engine: EngineName


@dataclass(frozen=True)
class Plan:
    """What to trace and how, checked; the arguments of `tracer.trace`, which says what each one means.

    Raises:
        SiteError, FactError: an invalid option; the message says what to write instead.
    """

    kinds: Sequence[Kind] = KINDS
    severed: Sequence[SubLayer | Severed] = ()
    groups: Sequence[Group] = ()
    window: int = 10
    samples: int = 10
    seed: int = 1
    corruption: Corruption | str | None = None
    roles: Sequence[str] | None = None
    engine: EngineName = "sweep"
    published_draws: bool = False
    max_bytes: int | None = None
    metric: str = "probability"
    direction: Direction = "restore"
    whole_answer: bool = False

    def __post_init__(self) -> None:
        check_kinds(self.kinds, self.severed)
        check_groups(self.groups)
        check_roles(self.roles or ())
        for name in ("kinds", "severed", "groups", "roles"):  # frozen, and the key of a dict: tuples
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        groups = tuple(group if isinstance(group, str) else whole_numbers(group) for group in self.groups)
        object.__setattr__(self, "groups", groups)
        self._check_numbers()
        if self.engine not in get_args(EngineName):
            raise SiteError(f'There is no engine {self.engine!r}. Write engine="sweep" or engine="passes".')
        if self.corruption is not None:
            object.__setattr__(self, "corruption", corruption_of(self.corruption))
        metric_named(self.metric)
        if self.whole_answer and self.metric not in JOINT:
            raise SiteError(
                f"An answer of several tokens has no {self.metric}. Write metric={JOINT[0]!r} or {JOINT[1]!r} with "
                f"whole_answer, or whole_answer=False to trace the first token."
            )
        if self.direction not in get_args(Direction):
            raise SiteError(f'There is no direction {self.direction!r}. Write "restore" or "corrupt".')
        if self.published_draws and self.direction != "restore":
            raise SiteError('The published severed trace restores: write direction="restore" with published_draws.')
        if self.published_draws and any(cut.tokens is not None for cut in self.cuts):
            raise SiteError("The published trace severs the restored token: write Severed(...) without tokens.")
        if self.published_draws and self.whole_answer:
            raise SiteError("The published trace reads one token: write whole_answer=False with published_draws.")

    def _check_numbers(self) -> None:
        for name, example in (("window", "10"), ("samples", "10"), ("seed", "1"), ("max_bytes", "1 << 30")):
            value = getattr(self, name)
            if value is None and name == "max_bytes":
                continue
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise SiteError(f"{name}={value!r} is no whole number. Write {name}={example}.")
        if self.window < 1:
            raise SiteError(f"A window of {self.window} layers restores nothing. Write window=1 or more.")
        if self.samples < 1:
            raise SiteError(f"samples={self.samples} draws nothing. Write samples=10.")
        if not 0 <= self.seed <= MOST_SEED:
            raise SiteError(f"seed={self.seed} is not from 0 to {MOST_SEED}. Write seed=1.")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise SiteError(f"max_bytes={self.max_bytes} holds nothing. Write max_bytes=1 << 30, or None.")

    def record(self) -> dict[str, Any]:
        """Everything that a number depends on, for JSON."""
        skipped = ("corruption", "max_bytes", "severed")
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in skipped}
        corruption = None if self.corruption is None else corruption_of(self.corruption).label()
        return {**plain, "severed": [cut.name for cut in self.cuts], "corruption": corruption}

    def engine_for(self, model: LanguageModel) -> EngineName:
        """The engine that is really used: the definition where the sweep was found at fault on this model."""
        return "passes" if model.sweep_fault else self.engine

    @property
    def names(self) -> list[str]:
        """The maps' names: kinds first, then severed ones."""
        return [*self.kinds, *(cut.name for cut in self.cuts)]

    @property
    def cuts(self) -> list[Severed]:
        """What `severed` says, in full."""
        return [Severed.of(path) for path in self.severed]

    def answer_length(self, fact: TokenizedFact) -> int:
        """How many tokens of the fact's answer are traced."""
        return max(1, len(fact.answer_ids)) if self.whole_answer else 1

    def check_cross_attention(self, model: LanguageModel) -> None:
        """Raises SiteError where cross-attention is asked of a model that has none."""
        wanted = "cross" in self.kinds or any(cut.path == "cross" for cut in self.cuts)
        if wanted and not model.is_encoder_decoder:
            raise SiteError(f'{model.name} has no cross-attention: leave "cross" out. Encoder-decoders have it.')

    def check_fits(self, fact: TokenizedFact) -> None:
        """Raises FactError or SiteError where the prompt lacks tokens that are severed or restored together."""
        for cut in self.cuts:
            cut.at(fact)
        for group in self.groups:
            group_tokens(fact, group)
