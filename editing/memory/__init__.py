"""Editors that leave the weights alone and keep a memory of edits."""

from editing.memory.ike import IKE
from editing.memory.mello import MeLLo
from editing.memory.memprompt import MemPrompt
from editing.memory.record import MemoryRecord
from editing.memory.retrievers import RETRIEVERS, retriever_named
from editing.memory.scope import Scope, load_scope
from editing.memory.scoped import ScopedFact, ScopedFacts, bundled_facts, read_scoped_facts, scoped_facts
from editing.memory.serac import SERAC
from editing.memory.threshold import Threshold, best_threshold

__all__ = [
    "IKE",
    "RETRIEVERS",
    "SERAC",
    "MeLLo",
    "MemPrompt",
    "MemoryRecord",
    "Scope",
    "ScopedFact",
    "ScopedFacts",
    "Threshold",
    "best_threshold",
    "bundled_facts",
    "load_scope",
    "read_scoped_facts",
    "retriever_named",
    "scoped_facts",
]
