"""Effects as labelled arrays of xarray, for those who have it: `average.sel(role="last token", layer=3)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.effect import AverageTrace, TraceResult
from tracer.errors import MissingPackageError
from tracer.fact import ROLES
from tracer.studies.study import Study
from tracer.studies.table import relative_depth

if TYPE_CHECKING:
    from xarray import DataArray  # pyright: ignore[reportMissingImports]


def to_xarray(found: Study | AverageTrace | TraceResult) -> DataArray:
    """Indirect effects, differences of the metric, NaN where not traced.

    A study or average becomes an array [kind, fact, role, layer], facts labelled by prompt; a trace
    [kind, token, layer, sample], tokens by position with `text` and `token_role` beside them. Layers carry
    `depth`, 0 for the first and 1 for the last.

    Raises:
        MissingPackageError: xarray is not installed.
    """
    array = _xarray().DataArray
    if isinstance(found, TraceResult):
        kinds = list(found.restored)
        values = found.sample_effects(np.stack([found.restored[kind] for kind in kinds]))
        coordinates = {
            "kind": kinds,
            "token": np.arange(values.shape[1]),
            **_layers(values.shape[2]),
            "sample": np.arange(values.shape[3]),
            "text": ("token", list(found.tokens)),
            "token_role": ("token", [role or "" for role in found.roles]),
        }
        return array(values, dims=("kind", "token", "layer", "sample"), coords=coordinates, name="indirect_effect")
    average = found.average if isinstance(found, Study) else found
    kinds = list(average.effects)
    values = np.stack([average.effects[kind] for kind in kinds])
    coordinates = {"kind": kinds, "fact": list(average.prompts), "role": list(ROLES), **_layers(values.shape[3])}
    return array(values, dims=("kind", "fact", "role", "layer"), coords=coordinates, name="indirect_effect")


def _layers(n: int) -> dict[str, Any]:
    return {"layer": np.arange(n), "depth": ("layer", [relative_depth(layer, n) for layer in range(n)])}


def _xarray() -> Any:
    try:
        import xarray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackageError(
            "xarray is not installed. Write pip install 'locate-then-edit[xarray]', or use to_frame()."
        ) from error
    return xarray
