"""Who makes what is wanted true: one protocol, and those who act by it."""
