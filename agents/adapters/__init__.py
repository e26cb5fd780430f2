"""One module an engine: its dialect in, our words out."""
