"""The few routes of the small servers that people start from, over the same services."""
