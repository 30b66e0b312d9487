"""The generator: language models behind continuous batching."""
