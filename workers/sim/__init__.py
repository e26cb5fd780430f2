"""The simulated engine: vLLM from outside, arithmetic inside."""
