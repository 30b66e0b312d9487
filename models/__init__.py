"""The recipes behind `make models`: where model files come from and how they are assembled.

Nothing here knows how a model is served.
"""
