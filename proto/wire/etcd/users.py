"""Users and roles of an etcd cluster, put in place by its root."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from proto.access import Rights
from proto.wire.errors import StoreRefused
from proto.wire.etcd.connection import Connection, EtcdSettings
from proto.wire.etcd.protocol import messages, stubs

ROOT = "root"
READ, READWRITE = 0, 2


async def put_in_place(
    settings: EtcdSettings, granted: Mapping[str, Rights], passwords: Mapping[str, str]
) -> None:
    """Give each user its password and exactly its rights, and make etcd ask who is there.

    `settings` name the root user and its password, which becomes root's if etcd has not asked so
    far. May be done again at any time, and changes only what is not so yet. Raises `StoreRefused`
    and `StoreUnavailable`.
    """
    async with _admin(settings) as (admin, asks):
        if not asks:
            await admin.add_user(ROOT, settings.password or "")
            await admin.try_("RoleAdd", messages.AuthRoleAddRequest(name=ROOT))
            await admin.do("UserGrantRole", messages.AuthUserGrantRoleRequest(user=ROOT, role=ROOT))
        for user, rights in granted.items():
            await admin.set_role(user, rights)
            await admin.add_user(user, passwords[user])
            await admin.do("UserGrantRole", messages.AuthUserGrantRoleRequest(user=user, role=user))
        if not asks:
            await admin.try_("AuthEnable", messages.AuthEnableRequest(), "user name is empty")


@asynccontextmanager
async def _admin(settings: EtcdSettings) -> AsyncIterator[tuple[_Admin, bool]]:
    """Whoever may change users, and whether etcd asks for users yet."""
    connection, asks = Connection(settings), True
    try:
        try:
            await _Admin(connection).do("UserList", messages.AuthUserListRequest())
        except StoreRefused as error:
            if "authentication is not enabled" not in str(error):
                raise
            await connection.close()
            connection, asks = Connection(msgspec.structs.replace(settings, user=None)), False
        yield _Admin(connection), asks
    finally:
        await connection.close()


class _Admin:
    """The calls of etcd's authentication service."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def do(self, method: str, request: Any) -> Any:
        return await self._connection.call(stubs.AuthStub, method, request)

    async def try_(self, method: str, request: Any, done: str = "already exists") -> bool:
        """False if etcd refuses it by the words `done`: then it is so already, perhaps by us, who
        ask again where an answer was lost."""
        try:
            await self.do(method, request)
        except StoreRefused as error:
            if done not in str(error):
                raise
            return False
        return True

    async def add_user(self, name: str, password: str) -> None:
        request = messages.AuthUserAddRequest(name=name, password=password)
        if not await self.try_("UserAdd", request):
            await self._change_password(name, password)

    async def _change_password(self, name: str, password: str) -> None:
        """Only to another one: a change ends the tokens of all who are at work."""
        with suppress(StoreRefused):
            request = messages.AuthenticateRequest(name=name, password=password)
            await self.do("Authenticate", request)
            return
        request = messages.AuthUserChangePasswordRequest(name=name, password=password)
        await self.do("UserChangePassword", request)

    async def set_role(self, name: str, rights: Rights) -> None:
        await self.try_("RoleAdd", messages.AuthRoleAddRequest(name=name))
        wanted = {_range(key): READ for key in rights.read}
        wanted |= {_range(key): READWRITE for key in rights.write}
        role = await self.do("RoleGet", messages.AuthRoleGetRequest(role=name))
        has = {(bytes(p.key), bytes(p.range_end)): int(p.permType) for p in role.perm}
        for key, range_end in has.keys() - wanted.keys():
            revoke = messages.AuthRoleRevokePermissionRequest(
                role=name, key=key.decode(), range_end=range_end.decode()
            )
            await self.try_("RoleRevokePermission", revoke, "permission is not granted")
        for (key, range_end), kind in wanted.items() - has.items():
            grant = messages.AuthRoleGrantPermissionRequest(name=name)
            grant.perm.key, grant.perm.range_end, grant.perm.permType = key, range_end, kind
            await self.do("RoleGrantPermission", grant)


def _range(key: str) -> tuple[bytes, bytes]:
    """A key alone, or all that begin with a prefix."""
    first = key.encode()
    return first, first[:-1] + bytes([first[-1] + 1]) if key.endswith("/") else b""
