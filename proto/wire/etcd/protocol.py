"""The protocol layer of the `etcd3` package, made to load under any protobuf.

etcd3 0.12.0 ships modules that an old compiler generated; protobuf 4 and later refuse them. Each
of them also carries, as one literal, the complete serialized description of its file, which is all
that protobuf needs. So we read the literals out of the unmodified wheel (nothing of those modules
is executed) and let protobuf build the message classes. The gRPC stubs of the wheel work as they
are. Importing this module is the way to import `etcd3.etcdrpc`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory

PACKAGE = "etcd3.etcdrpc"
FILES = ("kv", "auth", "rpc")
"""In the order of their imports."""


def _folder() -> Path:
    found = importlib.util.find_spec("etcd3")
    if found is None or found.origin is None:
        raise ImportError("the package etcd3 is not installed; try: pip install etcd3==0.12.0")
    return Path(found.origin).parent / "etcdrpc"


def _serialized(path: Path) -> bytes:
    """The `serialized_pb=...` literal of a generated module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
            value = node.value
            if isinstance(value, ast.Call):  # _b('...'), which is latin-1 text of the bytes
                return str(ast.literal_eval(value.args[0])).encode("latin-1")
            data = ast.literal_eval(value)
            if isinstance(data, bytes) and data:
                return data
    raise ImportError(f"{path} has no description of its messages; is this etcd3 0.12.0?")


def _load() -> tuple[Any, Any]:
    """The modules `rpc_pb2` and `rpc_pb2_grpc`, with everything of `kv_pb2` and `auth_pb2`."""
    if PACKAGE in sys.modules:
        raise ImportError(f"{PACKAGE} was imported before {__name__}; import only the latter")
    folder, pool = _folder(), descriptor_pool.Default()
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    for name in FILES:
        pool.AddSerializedFile(_serialized(folder / f"{name}_pb2.py"))
        module = types.ModuleType(f"{PACKAGE}.{name}_pb2")
        description = pool.FindFileByName(f"{name}.proto")
        for message_name, message in description.message_types_by_name.items():
            setattr(module, message_name, message_factory.GetMessageClass(message))
        for enum in description.enum_types_by_name.values():
            for value in enum.values:
                setattr(module, value.name, value.number)
        sys.modules[module.__name__] = module
        setattr(package, f"{name}_pb2", module)
    vars(package).update(_public(sys.modules[f"{PACKAGE}.rpc_pb2"]))
    stubs = importlib.import_module(f"{PACKAGE}.rpc_pb2_grpc")
    vars(package).update(_public(stubs))
    return package.rpc_pb2, stubs


def _public(module: types.ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


messages, stubs = _load()
"""`messages.PutRequest(...)` and the like; `stubs.KVStub(channel)` and the like."""
