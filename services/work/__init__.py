"""What is done with a model folder besides serving it: evaluate, profile, convert, try out."""
