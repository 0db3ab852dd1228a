"""Facts to trace: those that come with the package, and readers of the published files."""

from tracer.facts.bundled import bundled, paraphrases, relation_of, spread_over_relations, templates
from tracer.facts.readers import counterfact, known_facts, read_facts

__all__ = [
    "bundled",
    "counterfact",
    "known_facts",
    "paraphrases",
    "read_facts",
    "relation_of",
    "spread_over_relations",
    "templates",
]
