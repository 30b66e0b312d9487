"""Bytes by their digest, on a local disk or in an object store. Knows no model and no wire."""
