"""Facts to trace: those that come with the package, and readers of the published files."""

from tracer.facts.bundled import bundled, paraphrases, relation_of, templates
from tracer.facts.readers import counterfact, known_facts

__all__ = ["bundled", "counterfact", "known_facts", "paraphrases", "relation_of", "templates"]
