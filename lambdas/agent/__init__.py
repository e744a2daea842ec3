"""What runs strangers' code, and so holds no right on the bucket and shows no credential: Claude Code, kept in."""
