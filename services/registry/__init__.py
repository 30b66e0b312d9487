"""The registry: models, immutable versions, aliases, their history and their bytes."""
