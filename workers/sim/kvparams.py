"""What a request may ask of its KV blocks, in vLLM's words, and SGLang's beside them."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class KvParams(msgspec.Struct, kw_only=True):
    """`kv_transfer_params` of a request, and of the answer to it."""

    do_remote_decode: bool = False
    do_remote_prefill: bool = False
    remote_engine_id: str | None = None
    remote_request_id: str | None = None
    remote_block_ids: list[list[int]] | None = None
    remote_host: str | None = None
    remote_port: int | None = None
    remote_num_tokens: int | None = None
    remote_blocks_expiry_time: float | None = None
    tp_size: int | None = None
    transfer_mode: str | None = None
    bootstrap_host: str | None = None
    bootstrap_port: int | None = None
    bootstrap_room: int | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Where the blocks are, or will be."""
        host = self.bootstrap_host or self.remote_host
        port = self.bootstrap_port or self.remote_port
        return (host, port) if host and port else None


class OnFailure(StrEnum):
    """What becomes of a request whose blocks do not come (`kv_load_failure_policy`)."""

    FAIL = "fail"
    RECOMPUTE = "recompute"
