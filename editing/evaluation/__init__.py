"""What an edit did: scores that are comparable between editors, models and papers."""

from editing.datasets.benchmarks import Benchmark, read_benchmark
from editing.datasets.bundled import bundled_records
from editing.datasets.case import Ask, Case, CaseScores, Group
from editing.datasets.choices import read_choices
from editing.datasets.conflicts import without_conflicts
from editing.evaluation.batch import batch_edits
from editing.evaluation.checkpoints import Checkpoint, retention_matrix
from editing.evaluation.counterfact import evaluate_counterfact
from editing.evaluation.efficiency import Efficiency, measure_efficiency
from editing.evaluation.examination import Examination, Questions
from editing.evaluation.records import Evaluation, read_evaluation
from editing.evaluation.sequential import SequentialPlan, sequential_edits
from editing.evaluation.single import single_edits
from editing.evaluation.summary import (
    Difference,
    batch_summary,
    paired_difference,
    sequential_summary,
    summary,
)
from editing.metrics.definitions import Definition, definition
from editing.scoring.scores import TargetScore, target_scores

__all__ = [
    "Ask",
    "Benchmark",
    "Case",
    "CaseScores",
    "Checkpoint",
    "Definition",
    "Difference",
    "Efficiency",
    "Evaluation",
    "Examination",
    "Group",
    "Questions",
    "SequentialPlan",
    "TargetScore",
    "batch_edits",
    "batch_summary",
    "bundled_records",
    "definition",
    "evaluate_counterfact",
    "measure_efficiency",
    "paired_difference",
    "read_benchmark",
    "read_choices",
    "read_evaluation",
    "retention_matrix",
    "sequential_edits",
    "sequential_summary",
    "single_edits",
    "summary",
    "target_scores",
    "without_conflicts",
]
