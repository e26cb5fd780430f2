"""The whole cluster on one machine: which processes, in which order, and who restarts them."""
