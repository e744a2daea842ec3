"""The command `claude-workflow`."""

__version__ = "0.2.0"
