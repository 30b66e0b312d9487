"""The HTTP edge: REST read off the contract, health, and the documents. Loads no model."""
