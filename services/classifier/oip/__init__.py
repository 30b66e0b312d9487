"""The Open Inference Protocol, which the classifier serves beside its own contract."""
