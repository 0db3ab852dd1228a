"""What an edit did: scores that are comparable between editors, models and papers."""

from editing.evaluation.bundled import bundled_records
from editing.evaluation.counterfact import CaseScores, evaluate_counterfact, summary
from editing.scores import TargetScore, target_scores

__all__ = ["CaseScores", "TargetScore", "bundled_records", "evaluate_counterfact", "summary", "target_scores"]
