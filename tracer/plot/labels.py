"""The words of a figure: which maps are drawn, how maps, tokens and facts are named, where scales end."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tracer.effect import AverageTrace, Estimate, Settings, TraceResult
from tracer.errors import SiteError
from tracer.metric import METRIC_WORDS, UNITS
from tracer.site import ALL_KINDS, SEVERABLE, severed_name

WORDS = {"state": "state", "mlp": "MLP", "attn": "attention", "cross": "cross-attention"}


def chosen_maps(maps: Mapping[str, np.ndarray], kind: str | None) -> list[str]:
    """The names of the maps to draw, or SiteError for one that was not traced, or for none."""
    if not maps:
        raise SiteError("There is no map to draw: these traces have none in common.")
    if kind is not None and kind not in maps:
        raise SiteError(f"There is no map {kind!r} here. Choose from {', '.join(map(repr, maps))}.")
    order = [*ALL_KINDS, *map(severed_name, SEVERABLE)]
    first = [name for name in order if name in maps]
    return [*first, *(name for name in maps if name not in order)] if kind is None else [kind]


def map_family(name: str) -> str:
    """Whose colours a map wears: itself, or the state when it is severed."""
    return name if name in ALL_KINDS else "state"


def map_words(name: str, window: int) -> str:
    """A map in plain words, for titles."""
    for path in SEVERABLE:
        if name.startswith(severed_name(path)):  # perhaps in some layers or at some tokens alone
            return f"state with {WORDS[path]} severed{name.removeprefix(severed_name(path))}"
    if name == "state":
        return "state"
    return f"{WORDS[name]} for windowed interval of {window} layer{'s' if window > 1 else ''}"


def scale_end(maps: Mapping[str, np.ndarray], name: str) -> float:
    """Where the colours of a map end: the largest value in its family."""
    values = np.concatenate([values.ravel() for other, values in maps.items() if map_family(other) == map_family(name)])
    return float(values[np.isfinite(values)].max(initial=-1.0))


def shown_values(result: TraceResult) -> tuple[dict[str, np.ndarray], float, str]:
    """What the colours of one fact show: the values of each map [token, layer], where they begin, what they mean.

    p(answer) with a site restored, as in the paper; else the effect, what a site brings nearer to the
    clean run (further from it, if corrupted) counted as positive.
    """
    settings = result.settings
    if (settings.metric, settings.direction) == ("probability", "restore"):
        restored = {name: values.mean(-1) for name, values in result.restored.items()}
        return restored, result.corrupted, "p(answer) when restored"
    effects = {name: settings.sense * effect for name, effect in result.indirect_effect.items()}
    return effects, 0.0, effect_words(settings)


def shown_average(average: AverageTrace) -> tuple[dict[str, np.ndarray], str]:
    """AIE of each map [role, layer] with the sign of `shown_values`, and what it means."""
    aie = {name: average.settings.sense * values for name, values in average.indirect_effect.items()}
    if average.settings.metric == "probability":
        return aie, "average indirect effect"
    return aie, f"average {effect_words(average.settings)}"


def action(settings: Settings) -> str:
    """What is done to a site."""
    return "corrupting" if settings.direction == "corrupt" else "restoring"


def effect_words(settings: Settings) -> str:
    """What an effect is on, with its unit."""
    unit = "" if settings.metric == "probability" else f" ({UNITS[settings.metric]})"
    return f"effect on {METRIC_WORDS[settings.metric]}{unit}"


def metric_words(result: TraceResult) -> str:
    """The metric in plain words."""
    return METRIC_WORDS[result.settings.metric]


def map_title(result: TraceResult, name: str) -> str:
    """What is done in a map."""
    where = "in the clean run" if result.settings.direction == "corrupt" else "after corrupted input"
    return f"{action(result.settings)} {map_words(name, result.settings.window)} {where}"


def token_labels(result: TraceResult) -> list[str]:
    """The tokens as row labels: blanks trimmed, control characters spelt out, a star on the subject's.

    Those that a decoder reads apart from the prompt say so.
    """
    begin, end = result.subject_span
    words = [repr(text.strip(" ") or "␣")[1:-1] for text in result.tokens]
    words = [f"decoder: {word}" if 0 < result.fact.n_encoder <= n else word for n, word in enumerate(words)]
    return [f"{word}*" if begin <= n < end else word for n, word in enumerate(words)]


def layer_label(layer: int, settings: Settings) -> str:
    """The layer's number; in an encoder-decoder E or D in front, counted in its own stack."""
    first = settings.encoder_layers
    if not first:
        return str(layer)
    return f"E{layer}" if layer < first else f"D{layer - first}"


def layer_words(settings: Settings, words: str = "layer") -> str:
    """The words under an axis of layers, and what its letters mean."""
    return f"{words}\n(E: encoder, D: decoder)" if settings.encoder_layers else words


def traced_roles(average: AverageTrace) -> list[int]:
    """Rows of `ROLES` that any map has a value for."""
    known = np.any([~np.isnan(values).all(axis=(0, 2)) for values in average.effects.values()], axis=0)
    return [int(row) for row in np.flatnonzero(known)]


def trace_caption(result: TraceResult) -> str:
    """What the colours are to be read against."""
    missing = any(np.isnan(values).any() for values in result.restored.values())
    grey = f"; grey: not traced{', or not in this stack' if result.fact.n_encoder else ''}" if missing else ""
    corrupted = f"{result.corrupted:.3g} with the subject (*) corrupted"
    return (
        f"{metric_words(result)}: {result.clean:.3g} clean, {corrupted}{grey}. "
        f"{result.settings.model}, {result.settings.samples} noise samples."
    )


def average_caption(average: AverageTrace) -> str:
    """What the averages are to be read against: the total effect with its 95 % interval."""
    effect = with_interval(average.total_effect, average.settings.sense)
    return f"Average total effect {effect} (95 %, {count_facts(average.n)}). {average.settings.model}."


def with_interval(estimate: Estimate, sense: int = 1) -> str:
    """The mean times `sense`, ± 1.96 standard errors where there are any."""
    spread = "" if np.isnan(estimate.standard_error) else f" ± {1.96 * estimate.standard_error:.3f}"
    return f"{sense * estimate.mean:.3f}{spread}"


def count_facts(n: int) -> str:
    """The number with its noun."""
    return f"{n} fact{'' if n == 1 else 's'}"
