"""Who decides: the services of the control plane, and the one place where they meet carriers."""
