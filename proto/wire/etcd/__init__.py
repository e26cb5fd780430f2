"""The store on etcd: our own small client over the protocol layer of the `etcd3` package.

Why our own: docs/decisions/0001-etcd-client.md.
"""

import os

# gRPC's own handlers of fork() crash now and then in processes that start others.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
