"""The command `claude-workflow`."""
