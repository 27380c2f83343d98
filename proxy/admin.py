"""The admin interface: list, add, drain and remove instances while requests run.

Only with a key (`--admin-key-file`), which every call gives as `Authorization: Bearer`.
Draining waits for the requests of that one instance, not for the whole proxy.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs

from proxy.balancer import Address, Instance, Role
from proxy.codec import loads
from proxy.downstream import Request
from proxy.errors import ProxyError

if TYPE_CHECKING:
    from proxy.server import Proxy

PATH = "/admin/instances"


class Admin:
    """Answers requests to `/admin/instances` with JSON."""

    def __init__(self, proxy: Proxy, key: str) -> None:
        self._proxy = proxy
        self._key = key.encode()

    async def answer(self, request: Request, body: bytes) -> Any:
        """What to answer with 200. Raises ProxyError."""
        self._check_key(request)
        name = request.path.removeprefix(PATH).strip("/")
        if not name:
            if request.method == hdrs.METH_GET:
                return {"instances": [_described(i) for i in self._proxy.instances]}
            if request.method == hdrs.METH_POST:
                return _described(self._add(body))
        elif request.method == hdrs.METH_POST and name.endswith("/drain"):
            instance = self._named(name.removesuffix("/drain"))
            await self._drain(instance, _seconds(request))
            return _described(instance)
        elif request.method == hdrs.METH_POST and name.endswith("/resume"):
            instance = self._named(name.removesuffix("/resume"))
            instance.draining = False
            return _described(instance)
        elif request.method == hdrs.METH_DELETE:
            instance = self._named(name)
            await self._drain(instance, _seconds(request))
            if instance not in self._proxy.instances or not instance.draining:
                raise ProxyError(409, f"{instance.name} was removed or resumed meanwhile")
            self._proxy.remove(instance)
            return {"removed": instance.name}
        raise ProxyError(405, f"{request.path} does not take {request.method}")

    def _check_key(self, request: Request) -> None:
        if not self._key:
            raise ProxyError(404, "no admin interface: start the proxy with --admin-key-file")
        scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        given = key.strip().encode(errors="surrogateescape")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._key):
            raise ProxyError(401, "the admin key is missing or wrong (Authorization: Bearer …)")

    def _add(self, body: bytes) -> Instance:
        form = 'give {"role": "prefill" or "decode", "host": …, "port": …, "name": … (optional)}'
        try:
            data = loads(body)
            role = Role(data["role"])
            address = Address(data["host"], data["port"], data.get("name", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ProxyError(400, form) from None
        if not (isinstance(address.host, str) and address.host and isinstance(address.name, str)):
            raise ProxyError(400, form)
        if type(address.port) is not int or not 0 < address.port < 65536:
            raise ProxyError(400, f"port {address.port!r}: a port is 1 to 65535")
        if any(i.role is role and i.name == address.label for i in self._proxy.instances):
            raise ProxyError(409, f"{role.noun} {address.label} is there already")
        return self._proxy.add(role, address)

    def _named(self, name: str) -> Instance:
        """By name, or by role/name where a prefiller and a decoder share it."""
        role, _, rest = name.partition("/")
        found = [
            i for i in self._proxy.instances if i.name == name or (i.role, i.name) == (role, rest)
        ]
        if not found:
            known = ", ".join(i.name for i in self._proxy.instances)
            raise ProxyError(404, f"no instance {name!r}; there are {known}")
        if len(found) > 1:
            raise ProxyError(
                409, f"{name} is a prefiller and a decoder; say prefill/{name} or decode/{name}"
            )
        return found[0]

    async def _drain(self, instance: Instance, seconds: float) -> None:
        """Give it no new requests and wait for those it has."""
        instance.draining = True
        if instance.in_flight == 0:
            return
        if instance.on_idle is None:
            instance.on_idle = asyncio.Event()
        instance.on_idle.clear()
        try:
            async with asyncio.timeout(seconds):
                await instance.on_idle.wait()
        except TimeoutError:
            left = instance.in_flight
            raise ProxyError(
                409,
                f"{instance.name} still serves {left} requests after {seconds:g} s; "
                "it gets no new ones; call again to wait on",
            ) from None


def _seconds(request: Request) -> float:
    """How long to wait: `?seconds=` (default 30)."""
    text = request.url.query.get("seconds", "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise ProxyError(400, f"seconds={text!r}: a number from 0 to 86400")
    return seconds


def _described(instance: Instance) -> dict[str, Any]:
    return {
        "role": instance.role,
        "name": instance.name,
        "host": instance.address.host,
        "port": instance.address.port,
        "state": "draining" if instance.draining else instance.breaker.state,
        "reason": instance.breaker.reason,
        "in_flight": instance.in_flight,
        "load_tokens": instance.tokens,
        "requests": instance.served,
    }
