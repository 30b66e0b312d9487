"""The `gristmill` command."""

from gristmill_client.cli.app import main

__all__ = ["main"]
