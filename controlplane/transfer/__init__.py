"""The coordinator of KV transfers: who moves which blocks where, and what is left to clean up."""
