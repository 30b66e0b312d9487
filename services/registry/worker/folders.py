"""The folders of a job in hand, and how its progress is told: what both sides of the child know."""

from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Takes how much is done, from 0 to 1, and what is being done."""
MODEL, DATA, OUT = "model", "data", "out"
"""The version's files, those of a data set, and what a conversion makes."""
