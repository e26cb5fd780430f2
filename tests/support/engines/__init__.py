"""Stand-ins of engines that need a GPU: their documented bytes and JSON, over real sockets.

Behind each is the simulated engine, so that what they say hangs together: a cache that fills and
evicts, a queue, answers that stream. Only the dialect is another.
"""
