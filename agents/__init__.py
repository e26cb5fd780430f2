"""Who listens: one agent beside each engine tells the control plane the truth about it."""
