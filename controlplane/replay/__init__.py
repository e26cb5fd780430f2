"""A trace through the real router and simulated engines, in virtual time or over HTTP."""
