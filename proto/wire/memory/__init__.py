"""Carriers within one process: for the deterministic simulator and single-process examples."""
