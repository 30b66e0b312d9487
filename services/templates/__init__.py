"""Chat templates of models, rendered where they can neither harm nor hang."""
