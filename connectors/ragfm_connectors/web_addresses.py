"""Which network addresses a fetch from the web may reach, and a pool of connections that reaches no other.

A name is resolved once for each connection, all the addresses that come back are checked, and one of them is connected
to: a name that is resolved to another address a moment later (DNS rebinding) changes nothing. The check is on the
address, after the system has read whatever spelling the host had.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.timeout import _TYPE_DEFAULT

from ragfm.core.errors import ConnectorError

# Beside what is not of global reach by the registries of IANA (https://www.iana.org/assignments/iana-ipv4-special-registry)
_REFUSED = tuple(
    ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's host, which hands out secrets, has a public address
        "192.0.0.0/24", "192.88.99.0/24",  # protocols, and the way to 6to4
        "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96",  # IPv4 in IPv6: compatible, mapped, translated
        "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16",  # NAT64, Teredo, 6to4
        "2001:db8::/32", "3fff::/20", "5f00::/16", "fec0::/10",  # documentation, segment routing, site-local
    )
)  # fmt: skip
_ISATAP = 0x5EFE  # the middle of an address of an interface with an IPv4 address in it


class RefusedAddressError(ConnectorError):
    """A host is at an address that a fetch from the web must not reach."""


def is_public(address: str) -> bool:
    """Whether an address, as the system gives it, is one of the public internet. What can't be read is not."""
    try:
        at = ip_address(address)
    except ValueError:
        return False
    if any(at in network for network in _REFUSED if network.version == at.version):
        return False
    if isinstance(at, IPv6Address) and (int(at) >> 32) & 0xFFFF == _ISATAP:
        return False
    reached = isinstance(at, IPv4Address | IPv6Address) and at.is_global and not at.is_multicast
    return reached and not at.is_reserved and not (isinstance(at, IPv6Address) and at.scope_id)


def connect(host: str, port: int, timeout: float | None, allowed: Collection[str]) -> socket.socket:
    """A connection to a host, at an address that is checked first unless `allowed` names the host, or host and port.

    Raises RefusedAddressError, and OSError where the host can't be resolved or reached.
    """
    name = host.strip("[]").rstrip(".").lower()
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    if name not in allowed and f"{name}:{port}" not in allowed:
        for *_, address in found:
            if not is_public(str(address[0])):
                raise RefusedAddressError(
                    f"{host} is at {address[0]}, which is no public address.",
                    "If it is meant, name the host with the option `allow_hosts`.",
                )
    failed: OSError = socket.gaierror(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
        except OSError as error:
            connection.close()
            failed = error
        else:
            return connection
    raise failed


def guarded_pools(allowed: Collection[str], *, connect_seconds: float, read_seconds: float) -> PoolManager:
    """Pools of connections that only `connect` opens."""

    def opened(connection: HTTPConnection) -> socket.socket:
        timeout = connection.timeout
        seconds = None if isinstance(timeout, _TYPE_DEFAULT) else timeout
        try:
            return connect(connection.host, connection.port, seconds, allowed)
        except socket.gaierror as error:
            raise NameResolutionError(connection.host, connection, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(connection, f"no answer from {connection.host}") from error
        except OSError as error:
            raise NewConnectionError(connection, f"no connection: {error}") from error

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return opened(self)

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return opened(self)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls: Any = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls: Any = Secure

    timeout = Timeout(connect=connect_seconds, read=read_seconds)
    pools = PoolManager(num_pools=20, maxsize=1, timeout=timeout, retries=False)
    pools.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return pools
