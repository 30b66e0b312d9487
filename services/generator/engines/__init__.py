"""What executes a language model: one module for each engine."""
