"""The store on etcd: our own small client over the protocol layer of the `etcd3` package.

Why our own: docs/decisions/0001-etcd-client.md.
"""
