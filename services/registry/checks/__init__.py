"""What a registry checks of a version's files before anything loads them; knows no wire."""

from services.registry.checks.check import Policy, Report, check

__all__ = ["Policy", "Report", "check"]
