"""The average that a layer is located by: one map at one role, with a window in proportion to the model's depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracer.effect import AverageTrace
from tracer.errors import SiteError
from tracer.fact import Fact
from tracer.facts import bundled, spread_over_relations
from tracer.model import LanguageModel
from tracer.site import Kind, proportional_window
from tracer.studies.averaging import average

FACTS_TO_LOCATE = 24


def average_to_locate(
    model: LanguageModel,
    facts: Sequence[Fact] | None = None,
    *,
    kind: Kind = "mlp",
    role: str = "last subject token",
    most: int = FACTS_TO_LOCATE,
    window: int | None = None,
    **options: Any,
) -> AverageTrace:
    """What `tracer.locate` needs, and no more: one map at one role, averaged over facts.

    Args:
        model: from `tracer.load`.
        facts: to trace; default: the bundled ones, spread over their relations.
        kind: the map.
        role: the token.
        most: how many of the facts, that the model predicts, are traced.
        window: layers restored together; default: as 10 are to GPT-2 XL's 48 layers.
        **options: of `tracer.average`, such as samples, folder and progress.

    Raises:
        FactError, SiteError: as `tracer.average`.
    """
    if twice := {"kinds", "roles"} & options.keys():
        raise SiteError(f"A layer is located by one map at one role: write kind= and role=, not {', '.join(twice)}=.")
    pool = spread_over_relations(bundled()) if facts is None else facts
    if window is None:
        window = proportional_window(model.depth)
    return average(model, pool, kinds=(kind,), roles=(role,), most=most, window=window, **options)
