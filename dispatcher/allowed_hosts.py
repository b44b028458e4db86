"""Which hosts may be told of a training: a message's webhook_url must not reach into the network."""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = re.compile(r"[\w:%-]{1,63}(\.[\w:%-]{1,63})*")
"""A name that can be looked up, or an address, perhaps with its zone."""


def url_fault(url: str) -> str | None:
    """Return why no PATCH can go to a URL, whichever hosts are allowed, or None."""
    try:
        parts = urlsplit(url)
        host, _port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in _DEFAULT_PORTS or not host:
        return "must be an http or https URL"
    if parts.username or parts.password:
        return "must not hold a user name or password"
    if "\\" in url:
        return "must not hold a backslash"  # the HTTP client takes it for the end of the host
    return None if _HOST.fullmatch(host) else "is not a URL"


class AllowedHosts:
    """An allow-list of `host`, `host:port`, `*.domain`, `*`, addresses and networks in CIDR form.

    A host that is named exactly may have any address, since the operator vouches for it; one that
    matches a pattern must have a public address, or one inside a network on the list. Link-local
    addresses (cloud metadata) are refused unless a network on the list holds them.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._names: set[str] = set()
        self._suffixes: set[str] = set()
        self._networks: list[Network] = []
        self._any = False
        for entry in (entry.strip().lower() for entry in entries):
            if entry == "*":
                self._any = True
            elif entry.startswith("*."):
                self._suffixes.add(entry[1:])
            elif "/" in entry:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            elif entry:
                self._names.add(entry.rstrip("."))

    def refusal(self, url: str) -> str | None:
        """Return why a URL is refused, or None when its host is allowed."""
        fault = url_fault(url)
        if fault:
            return fault
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
        if self._vouched(host, port) or self._matches_pattern(host) or self._in_networks(host):
            return None
        return f"names the host {host}, which is not in WEBHOOK_ALLOWED_HOSTS"

    def address_refusal(self, host: str, port: int, address: str) -> str | None:
        """Return why an allowed host may not be reached at the address that it resolved to, or None.

        Asked about the peer of the connected socket, so a second look-up cannot tell otherwise.
        """
        ip = ipaddress.ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if any(ip in network for network in self._networks):
            return None
        if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
            return f"{host} is at {ip}, which no webhook may reach"
        if self._vouched(host.lower().rstrip("."), port) or ip.is_global:
            return None
        return f"{host} is at the private address {ip}; name the host itself in WEBHOOK_ALLOWED_HOSTS"

    def _vouched(self, host: str, port: int) -> bool:
        bracketed = f"[{host}]" if ":" in host else host
        return host in self._names or f"{bracketed}:{port}" in self._names

    def _matches_pattern(self, host: str) -> bool:
        return self._any or any(host.endswith(suffix) for suffix in self._suffixes)

    def _in_networks(self, host: str) -> bool:
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(ip in network for network in self._networks)
