"""What is said: the words that agents, services and workers exchange, and how they travel."""
