"""The `tokenplane` command."""
