"""Who computes: engines. Nothing here knows the control plane; an engine is HTTP and ZeroMQ."""
