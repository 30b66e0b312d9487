"""The list of recipes; knows nothing of how they are made."""

from __future__ import annotations

from models.iris.recipe import RECIPE as IRIS
from models.recipe import Recipe
from models.sentiment.recipe import RECIPE as SENTIMENT
from models.smollm2.recipe import RECIPE as SMOLLM2

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (SENTIMENT, IRIS, SMOLLM2)}
