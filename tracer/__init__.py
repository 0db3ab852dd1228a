"""Where does a language model keep a fact? Causal tracing, exact and fast."""

from tracer.anatomy.names import Names
from tracer.causal_trace import trace
from tracer.corrupt import GaussianNoise, embedding_sigma
from tracer.effect import AverageTrace, Estimate, TraceResult
from tracer.errors import (
    AnatomyError,
    FactError,
    FileFormatError,
    MissingPackageError,
    ModelSourceError,
    NumericsError,
    OutOfMemoryError,
    SiteError,
    StudyError,
    SweepMismatchError,
    TracerError,
    TracerWarning,
)
from tracer.fact import ROLES, Fact, TokenizedFact
from tracer.first_order.attribution import attribute
from tracer.first_order.edge_scores import Edge, EdgeScores
from tracer.first_order.edges import attribute_edges, path_patch
from tracer.first_order.neurons import NeuronScores, attribute_neurons
from tracer.first_order.query_key import QueryKeyMaps, attribute_queries_and_keys
from tracer.first_order.screen import Screening, screen
from tracer.model import LanguageModel, load
from tracer.place import Place, RankedLayer, locate
from tracer.plan import Plan
from tracer.plot import (
    plot_agreement,
    plot_average,
    plot_edges,
    plot_heads,
    plot_lines,
    plot_samples,
    plot_severed,
    plot_trace,
    save_figure,
)
from tracer.plot.interactive import hover_agreement, hover_average, hover_heads, hover_trace, save_html
from tracer.severed import Severed
from tracer.site import Site
from tracer.studies import (
    Components,
    PairedTest,
    Study,
    average_frame,
    compare,
    holm,
    merge,
    paired_test,
    paired_tests,
    run_study,
    sample_components,
    to_xarray,
)
from tracer.studies.averaging import average, average_of
from tracer.studies.locating import average_to_locate
from tracer.studies.report import save_report
from tracer.unit_trace import UnitTrace, trace_heads, trace_neurons

__all__ = [
    "ROLES",
    "AnatomyError",
    "AverageTrace",
    "Edge",
    "EdgeScores",
    "Components",
    "Estimate",
    "Fact",
    "FactError",
    "FileFormatError",
    "GaussianNoise",
    "LanguageModel",
    "MissingPackageError",
    "ModelSourceError",
    "Names",
    "NeuronScores",
    "NumericsError",
    "OutOfMemoryError",
    "PairedTest",
    "Place",
    "Plan",
    "RankedLayer",
    "Site",
    "QueryKeyMaps",
    "Screening",
    "Severed",
    "SiteError",
    "Study",
    "StudyError",
    "SweepMismatchError",
    "TokenizedFact",
    "TraceResult",
    "TracerError",
    "TracerWarning",
    "UnitTrace",
    "attribute",
    "attribute_edges",
    "attribute_neurons",
    "attribute_queries_and_keys",
    "average",
    "average_frame",
    "average_of",
    "average_to_locate",
    "compare",
    "embedding_sigma",
    "holm",
    "hover_agreement",
    "hover_average",
    "hover_heads",
    "hover_trace",
    "load",
    "locate",
    "path_patch",
    "merge",
    "paired_test",
    "paired_tests",
    "plot_agreement",
    "plot_average",
    "plot_edges",
    "plot_heads",
    "plot_lines",
    "plot_samples",
    "plot_severed",
    "plot_trace",
    "run_study",
    "sample_components",
    "save_figure",
    "save_html",
    "screen",
    "save_report",
    "to_xarray",
    "trace",
    "trace_heads",
    "trace_neurons",
]
