"""Policies: given the candidates for a prompt, what each would cost. One small function each."""
