"""Credentials of a cluster: users of NATS and etcd, and certificates for development."""
