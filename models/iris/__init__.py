"""The iris classifier: four measurements, three species, a straight line between them."""
