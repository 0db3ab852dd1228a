"""What an edit did: scores that are comparable between editors, models and papers."""

from editing.evaluation.batch import batch_edits, without_conflicts
from editing.evaluation.benchmarks import Benchmark, read_benchmark
from editing.evaluation.bundled import bundled_records
from editing.evaluation.case import Ask, Case, CaseScores, Group
from editing.evaluation.counterfact import evaluate_counterfact
from editing.evaluation.examination import Examination, Questions
from editing.evaluation.sequential import Checkpoint, SequentialPlan, retention_matrix, sequential_edits
from editing.evaluation.single import single_edits
from editing.evaluation.summary import (
    Difference,
    batch_summary,
    paired_difference,
    sequential_summary,
    summary,
)
from editing.scoring.scores import TargetScore, target_scores

__all__ = [
    "Ask",
    "Benchmark",
    "Case",
    "CaseScores",
    "Checkpoint",
    "Difference",
    "Examination",
    "Group",
    "Questions",
    "SequentialPlan",
    "TargetScore",
    "batch_edits",
    "batch_summary",
    "bundled_records",
    "evaluate_counterfact",
    "paired_difference",
    "read_benchmark",
    "retention_matrix",
    "sequential_edits",
    "sequential_summary",
    "single_edits",
    "summary",
    "target_scores",
    "without_conflicts",
]
