"""A small typed client for programs that ask a cluster, or steer it."""
