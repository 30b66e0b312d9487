"""The Open Inference Protocol over HTTP: JSON tensors, binary tensors, generate."""
