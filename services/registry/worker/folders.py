"""The folders of a job in hand, and how its progress is told: what both sides of the child know."""

from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Takes how much is done, from 0 to 1, and what is being done."""
MODEL, DATA, OUT, TEMPORARY = "model", "data", "out", "tmp"
"""The version's files, those of a data set, what a conversion makes, and what no one keeps; only
the last two may be written."""
