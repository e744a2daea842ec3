"""The command `claude-workflow`, one file for each of its commands."""
