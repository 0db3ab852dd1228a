"""Editors beside each other on one model: every editor, data file and protocol in one folder."""

from editing.comparison.compare import ComparisonPlan, compare
from editing.comparison.entrant import Entrant, entrants, read_settings
from editing.comparison.folder import Comparison, read_comparison

__all__ = ["Comparison", "ComparisonPlan", "Entrant", "compare", "entrants", "read_comparison", "read_settings"]
