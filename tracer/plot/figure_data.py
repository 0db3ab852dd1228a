"""The numbers that figures show: grids of heads, two maps site by site, a fact's own peak.

Effects have the sign of `tracer.plot.labels.shown_values`: positive towards the clean answer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from tracer.effect import TraceResult
from tracer.errors import FactError, SiteError
from tracer.fact import ROLES, check_roles
from tracer.first_order.screen import rank_correlation
from tracer.unit_trace import UnitTrace


@dataclass(frozen=True)
class Peak:
    """The site of a map with the largest effect.

    Attributes:
        subject: of the fact.
        position, token: the site's token, as a number and as text.
        effect: mean over samples.
    """

    subject: str
    position: int
    token: str
    layer: int
    effect: float


@dataclass(frozen=True, eq=False)
class Agreement:
    """Two maps of the same sites, [token, layer]; NaN before the subject.

    Attributes:
        correlation: Spearman's.
        n: sites compared.
    """

    exact: np.ndarray
    estimate: np.ndarray
    correlation: float
    n: int


def peak_of(result: TraceResult, kind: str, role: str | None = None) -> Peak:
    """Where a map of one fact has its largest effect; errors as `tracer.plot_samples`."""
    if role is not None:
        check_roles([role])
    if kind not in result.restored:
        raise SiteError(f"This trace has no {kind!r}; it has {', '.join(result.restored)}.")
    effect = result.settings.sense * result.indirect_effect[kind]
    asked = np.array([role in (None, own) for own in result.roles])
    effect = np.where(asked[:, None], effect, np.nan)
    if np.isnan(effect).all():
        raise SiteError(f"This fact was not traced at a {role or 'token'}: {''.join(result.tokens)!r}.")
    position, layer = np.unravel_index(np.nanargmax(effect), effect.shape)
    begin, end = result.subject_span
    subject = result.fact.fact.subject if result.fact.fact else "".join(result.tokens[begin:end]).strip()
    found = float(effect[position, layer])
    return Peak(subject, int(position), result.tokens[int(position)], int(layer), found)


def head_grids(trace: UnitTrace, *, role: str | None = None, token: int | None = None) -> dict[str, np.ndarray]:
    """Effects [layer, head] of each role that was traced, by a title; errors as `tracer.plot_heads`."""
    if trace.kind != "head":
        raise SiteError(f"A grid shows heads; this is a trace of {trace.kind}s. Write tracer.trace_heads(model, fact).")
    effect = trace.settings.sense * trace.effect
    traced = [int(n) for n in np.flatnonzero(~np.isnan(effect).all(axis=(1, 2)))]
    tokens = {name: [n for n in traced if trace.roles[n] == name] for name in ROLES if role in (None, name)}
    if role is not None:
        check_roles([role])
    if token is not None:
        tokens = {f"token {token}": [n for n in traced if n == token]}
    grids = {_where(trace, name, chosen): effect[chosen].mean(0) for name, chosen in tokens.items() if chosen}
    if not grids:
        said = ", ".join(f"{n} ({trace.roles[n]})" for n in traced)
        raise SiteError(f"Heads were not traced at {role or f'token {token}'}; they were at the tokens {said}.")
    return grids


def agreement(estimate: TraceResult, exact: TraceResult, kind: str) -> Agreement:
    """Both maps with what they agree; errors as `tracer.plot_agreement`."""
    alike = dataclasses.replace(estimate.settings, engine=exact.settings.engine) == exact.settings
    if estimate.fact.token_ids != exact.fact.token_ids or not alike:
        raise FactError(
            "The estimate and the exact trace are of different facts, windows or draws; compare alike ones."
        )
    if kind not in estimate.restored or kind not in exact.restored:
        raise SiteError(
            f"Not both have {kind!r}. They have {', '.join(estimate.restored)}; {', '.join(exact.restored)}."
        )
    one, other = (result.settings.sense * result.indirect_effect[kind] for result in (exact, estimate))
    if estimate.settings.engine == "graddrop":  # which has sizes only
        one = np.abs(one)
    begin = exact.subject_span[0]
    known = ~np.isnan(one) & ~np.isnan(other) & (np.arange(len(one)) >= begin)[:, None]
    one, other = (np.where(known, values, np.nan) for values in (one, other))
    return Agreement(one, other, rank_correlation(one[known], other[known]), int(known.sum()))


def tokens_by_role(result: TraceResult) -> dict[str, list[int]]:
    """The tokens of each role, in the order of `ROLES`."""
    return {role: [n for n, own in enumerate(result.roles) if own == role] for role in ROLES}


def _where(trace: UnitTrace, name: str, tokens: list[int]) -> str:
    texts = ", ".join(repr(trace.fact.tokens[n].strip()) for n in tokens if n < len(trace.fact.tokens))
    return f"{name}: {texts}" if texts else name
