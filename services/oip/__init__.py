"""The Open Inference Protocol's contract: what the classifier serves and the gateway calls."""
