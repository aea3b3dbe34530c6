"""Answers that keep to a form: a JSON schema, a regular expression, a choice of texts, a grammar."""

from edgellm.engine.constrain.constrainer import Constrainer
from edgellm.engine.constrain.constraints import Choice, Constraint, Grammar, JsonObject, JsonSchema, Regex
from edgellm.engine.constrain.matcher import Matcher

__all__ = ["Choice", "Constrainer", "Constraint", "Grammar", "JsonObject", "JsonSchema", "Matcher", "Regex"]
