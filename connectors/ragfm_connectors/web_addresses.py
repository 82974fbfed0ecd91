"""The network addresses that the web connector may reach, and a connection pool that reaches no others.

A host name is resolved once per connection, all resulting addresses are checked, and one of them is connected to. A
name that resolves to another address a moment later (DNS rebinding) therefore changes nothing. The check applies to the
address, after the system has interpreted the spelling of the host.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Timeout
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.timeout import _TYPE_DEFAULT

from ragfm.core.errors import ConnectorError

# In addition to the networks that IANA does not list as globally reachable
# (https://www.iana.org/assignments/iana-ipv4-special-registry).
_REFUSED_NETWORKS = [
    ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's metadata host, which hands out secrets at a public address
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # relay to 6to4
        "::/96",  # IPv4-compatible
        "::ffff:0:0/96",  # IPv4-mapped
        "::ffff:0:0:0/96",  # IPv4-translated
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # local NAT64
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fec0::/10",  # site-local
    )
]
_ISATAP = 0x5EFE  # the middle of an interface address with an IPv4 address in it


def is_public(address: str) -> bool:
    """Whether an address, as the system formats it, is on the public internet. An unreadable address is not."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if any(ip in network for network in _REFUSED_NETWORKS if network.version == ip.version):
        return False
    if isinstance(ip, IPv6Address) and (ip.scope_id or (int(ip) >> 32) & 0xFFFF == _ISATAP):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def connect(host: str, port: int, timeout: float | None, allowed: Collection[str]) -> socket.socket:
    """A connection to a host whose addresses are all public, unless `allowed` contains `host` or `host:port`.

    Raises ConnectorError for an address that is not and for an invalid name, and OSError if the host cannot be resolved
    or reached.
    """
    name = host.strip("[]").rstrip(".").lower()
    try:
        addresses = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except UnicodeError:  # an empty label, or one of more than 63 characters
        raise ConnectorError(f"{host!r} is not a valid host name.") from None
    if name not in allowed and f"{name}:{port}" not in allowed:
        for *_, address in addresses:
            if not is_public(str(address[0])):
                raise ConnectorError(
                    f"{host} is at {address[0]}, which is not a public address.",
                    "If this is intended, name the host in the option `allow_hosts`.",
                )
    last_error: OSError = socket.gaierror(f"{host} has no address")
    for family, kind, protocol, _, address in addresses:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
        except OSError as error:
            connection.close()
            last_error = error
        else:
            return connection
    raise last_error


def guarded_pools(allowed: Collection[str], *, connect_seconds: float, read_seconds: float) -> PoolManager:
    """Connection pools whose connections are all opened by `connect`."""

    def open_socket(connection: HTTPConnection) -> socket.socket:
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

    def guarded(pool_class: type[HTTPConnectionPool]) -> Any:
        connection_class = type("GuardedConnection", (pool_class.ConnectionCls,), {"_new_conn": open_socket})
        return type("GuardedPool", (pool_class,), {"ConnectionCls": connection_class})

    timeout = Timeout(connect=connect_seconds, read=read_seconds)
    pools = PoolManager(num_pools=20, maxsize=4, timeout=timeout, retries=False)
    pools.pool_classes_by_scheme = {"http": guarded(HTTPConnectionPool), "https": guarded(HTTPSConnectionPool)}
    return pools
