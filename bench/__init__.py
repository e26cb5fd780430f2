"""What Tokenplane costs, measured beside a peer. Not installed: it lives in the repository only."""
