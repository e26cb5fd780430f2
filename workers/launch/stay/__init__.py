"""A directory for PYTHONPATH: `sitecustomize` is run by every Python that starts with it."""
