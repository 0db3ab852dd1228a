"""Where does a language model keep a fact? Causal tracing, exact and fast."""

from tracer.anatomy import Names
from tracer.attribution import attribute
from tracer.causal_trace import trace
from tracer.corrupt import GaussianNoise, embedding_sigma
from tracer.edges import Edge, EdgeScores, attribute_edges, path_patch
from tracer.effect import AverageTrace, Estimate, TraceResult
from tracer.errors import (
    AnatomyError,
    FactError,
    FileFormatError,
    ModelSourceError,
    NumericsError,
    SiteError,
    SweepMismatchError,
    TracerError,
    TracerWarning,
)
from tracer.fact import ROLES, Fact, TokenizedFact
from tracer.interactive import hover_average, hover_trace, save_html
from tracer.model import LanguageModel, load
from tracer.place import Place, locate
from tracer.plot import plot_average, plot_lines, plot_severed, plot_trace, save_figure
from tracer.query_key import QueryKeyMaps, attribute_queries_and_keys
from tracer.screen import Screening, screen
from tracer.site import Site
from tracer.study import average, average_of

__all__ = [
    "ROLES",
    "AnatomyError",
    "AverageTrace",
    "Edge",
    "EdgeScores",
    "Estimate",
    "Fact",
    "FactError",
    "FileFormatError",
    "GaussianNoise",
    "LanguageModel",
    "ModelSourceError",
    "Names",
    "NumericsError",
    "Place",
    "Site",
    "QueryKeyMaps",
    "Screening",
    "SiteError",
    "SweepMismatchError",
    "TokenizedFact",
    "TraceResult",
    "TracerError",
    "TracerWarning",
    "attribute",
    "attribute_edges",
    "attribute_queries_and_keys",
    "average",
    "average_of",
    "embedding_sigma",
    "hover_average",
    "hover_trace",
    "load",
    "locate",
    "path_patch",
    "plot_average",
    "plot_lines",
    "plot_severed",
    "plot_trace",
    "save_figure",
    "save_html",
    "screen",
    "trace",
]
