"""What an evaluation asks: a case is an edit request with groups of prompts and the answers that are scored.

A reader makes cases of a file, whatever the benchmark; everything after it sees cases only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from editing.request import EditRequest
from editing.scoring.scores import Pair

COMPUTED_TOGETHER = "computed_together"


@dataclass(frozen=True)
class Ask:
    """One prompt.

    Attributes:
        target: the answer scored; its tokens are forced.
        other: the answer it competes with, if there is one (CounterFact).
        aliases: other right answers; the best of all counts where whole answers are compared.
        hop: a prompt with the answer that the unedited model must know, where `target` builds on that.
    """

    prompt: str
    target: str
    other: str | None = None
    aliases: tuple[str, ...] = ()
    hop: Pair | None = None

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """What a model must score for it."""
        others = () if self.other is None else (self.other,)
        return tuple((self.prompt, answer) for answer in (self.target, *others, *self.aliases))


@dataclass(frozen=True)
class Group:
    """Prompts of one kind, averaged within their case first.

    Attributes:
        name: "rewrite", "paraphrase", "neighborhood", or another kind.
        stays: the edit should leave them alone, so the model is compared with itself before the edit.
        choice: of two answers the more probable one is picked; only that pick is scored.
    """

    name: str
    asks: tuple[Ask, ...]
    stays: bool = False
    choice: bool = False

    @property
    def compared(self) -> bool:
        """Whether the edited model's predictions are compared with those of the unedited one."""
        return self.stays and not self.choice


@dataclass(frozen=True)
class Case:
    """One edit and what is asked about it.

    Attributes:
        request: None where it cannot be made; `refused` says why.
        samples: prompts to write from, for fluency and consistency.
        topic: (relation, id of the new object), the key of its reference texts.
    """

    id: str
    request: EditRequest | None
    groups: tuple[Group, ...]
    samples: tuple[str, ...] = ()
    topic: tuple[str, str] | None = None
    refused: str = ""

    @property
    def pairs(self) -> list[Pair]:
        """What a model must score for the case."""
        return [pair for group in self.groups for ask in group.asks for pair in ask.pairs]

    @property
    def staying(self) -> list[Pair]:
        """The pairs on which the edited model is compared with the unedited one."""
        return [(ask.prompt, ask.target) for group in self.groups if group.compared for ask in group.asks]


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case by metric, before and after its edit.

    Attributes:
        diagnostics: the editor's record of the request; "not_editable" says why there is none, "lost" that the
            model gave NaN, "computed_together" with how many edits it shared its time.
        seconds: that the edit took, NaN where unknown; edits made together share their time.
    """

    case_id: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = float("nan")

    @property
    def together(self) -> int:
        """Single edits that the editor computed together with this one, itself among them."""
        return self.diagnostics.get(COMPUTED_TOGETHER, 1)

    @property
    def editable(self) -> bool:
        """Whether the request could be written."""
        return "not_editable" not in self.diagnostics
