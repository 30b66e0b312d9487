"""The sentiment classifier: a frozen public encoder and a small head fitted on human ratings."""
