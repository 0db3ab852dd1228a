"""Many facts as one study: a folder that a killed run continues, its statistics, and studies side by side."""

from tracer.studies.compare import compare
from tracer.studies.components import Components, sample_components
from tracer.studies.labelled import to_xarray
from tracer.studies.manifest import Entry, Manifest
from tracer.studies.merge import merge
from tracer.studies.paired import PairedTest, holm, paired_test, paired_tests
from tracer.studies.run import run_study
from tracer.studies.study import Study
from tracer.studies.table import average_frame

__all__ = [
    "Components",
    "Entry",
    "Manifest",
    "PairedTest",
    "Study",
    "average_frame",
    "compare",
    "holm",
    "merge",
    "paired_test",
    "paired_tests",
    "run_study",
    "sample_components",
    "to_xarray",
]
