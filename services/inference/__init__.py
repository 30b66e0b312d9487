"""How a model folder becomes something that runs; knows no wire."""
