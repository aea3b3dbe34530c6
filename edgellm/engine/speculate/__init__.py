"""What to propose to the model, and how much of it.

A step computes several rows in little more than the time of one. So the engine runs it on the last token and a draft of
those that may follow, samples at every row as if it had come to it one by one, and keeps tokens while the draft was
right. The text is the same with any draft or none; what is here only decides how fast it comes.

    text         texts that know where their tokens stood before, and those of past requests
    proposer     drafts from where the text's end stood before
    edits        copies with changes, which are expected again
    costs        seconds of a step by rows and depth
    controller   how long a draft pays, from what became of those before
"""

from edgellm.engine.speculate.controller import MAX_DRAFT, Controller, Mode
from edgellm.engine.speculate.costs import CostModel
from edgellm.engine.speculate.proposer import LookupProposer, Proposer
from edgellm.engine.speculate.text import MAX_MATCH, IndexedText, SessionTexts

__all__ = [
    "MAX_DRAFT",
    "MAX_MATCH",
    "Controller",
    "CostModel",
    "IndexedText",
    "LookupProposer",
    "Mode",
    "Proposer",
    "SessionTexts",
]
