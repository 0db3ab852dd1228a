"""Editors beside each other on one model: every editor, data file and protocol in one folder."""

from editing.comparison.compare import compare
from editing.comparison.entrant import Entrant, entrants, read_settings
from editing.comparison.folder import Comparison, read_comparison
from editing.comparison.plan import ComparisonPlan
from editing.comparison.plot import plot_costs, plot_course, plot_properties
from editing.comparison.profile import profile
from editing.comparison.properties import PROPERTIES, Property
from editing.comparison.recommend import Ranked, Recommendation, recommend
from editing.comparison.saving import save_comparison
from editing.comparison.tables import scores_frame

__all__ = [
    "PROPERTIES",
    "Comparison",
    "ComparisonPlan",
    "Entrant",
    "Property",
    "Ranked",
    "Recommendation",
    "compare",
    "entrants",
    "plot_costs",
    "plot_course",
    "plot_properties",
    "profile",
    "read_comparison",
    "read_settings",
    "recommend",
    "save_comparison",
    "scores_frame",
]
