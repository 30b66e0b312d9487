"""The classifier: dynamic batching over classification models."""
