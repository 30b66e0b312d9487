"""What executes a classifier: one module for each kind of model file."""
