"""The ports: what a service may ask of the world, and what it is promised.

`Bus` carries what happens (NATS), `Store` holds what is (etcd), `Http` reaches engines, `Frames`
listens to an engine's ZeroMQ sockets. A service takes ports and never a client library; only
modules of `proto.wire` know one. Every method may be cancelled at any await without leaving a
task, a subscription or a lock behind.
"""

from proto.wire.ports.bus import (
    AtOnce,
    Bucket,
    BucketSpec,
    Bus,
    Cell,
    Delivery,
    Endpoint,
    Handler,
    Message,
    ServiceInfo,
    StreamSpec,
    Subscription,
)
from proto.wire.ports.frames import Frames, FrameStream
from proto.wire.ports.headers import NO_HEADERS, Headers
from proto.wire.ports.http import (
    DEFAULT_TIMEOUTS,
    Http,
    HttpCall,
    HttpHandler,
    HttpLimits,
    HttpPort,
    HttpRefuse,
    HttpResponse,
    HttpServing,
    HttpTake,
    HttpTimeouts,
)
from proto.wire.ports.store import Deleted, Entry, Lease, Put, Stale, Store, Synced, WatchEvent

__all__ = [
    "DEFAULT_TIMEOUTS",
    "NO_HEADERS",
    "AtOnce",
    "Bucket",
    "BucketSpec",
    "Bus",
    "Cell",
    "Deleted",
    "Delivery",
    "Endpoint",
    "Entry",
    "FrameStream",
    "Frames",
    "Handler",
    "Headers",
    "Http",
    "HttpCall",
    "HttpHandler",
    "HttpLimits",
    "HttpPort",
    "HttpRefuse",
    "HttpResponse",
    "HttpServing",
    "HttpTake",
    "HttpTimeouts",
    "Lease",
    "Message",
    "Put",
    "ServiceInfo",
    "Stale",
    "Store",
    "StreamSpec",
    "Subscription",
    "Synced",
    "WatchEvent",
]
