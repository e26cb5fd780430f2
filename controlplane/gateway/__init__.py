"""The product's face: OpenAI-compatible HTTP in front of the fleet."""
