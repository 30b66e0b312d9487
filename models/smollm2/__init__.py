"""The small language model: fetched as it is, described from its own header."""
