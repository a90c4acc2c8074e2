"""No push reaches an address that is not of the public internet, whatever a name leads to."""

from __future__ import annotations

import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from tidings.delivery.push_web import PublicResolver, is_public


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "2002:808:808::1"],
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "100.100.100.200", "224.0.0.1", "255.255.255.255"),
        *("192.0.0.192", "198.18.0.1", "240.0.0.1", "::", "::1", "fe80::1", "fe80::1%eth0"),
        *("fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254"),
        *("64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::1", "2002:a9fe:a9fe::1"),
        "2001:0:4136:e378:8000:63bf:80ff:fffe",  # Teredo, of 127.0.0.1
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


class Names(AbstractResolver):
    """Names that lead where the test says."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=each, port=port, family=family, proto=0, flags=0)
            for each in self.addresses
        ]

    async def close(self) -> None:
        pass


async def test_a_name_may_lead_to_public_addresses_alone() -> None:
    good = PublicResolver(Names("8.8.8.8", "2606:4700:4700::1111"))
    assert len(await good.resolve("push.example.com", 443)) == 2
    for addresses in (("127.0.0.1",), ("8.8.8.8", "169.254.169.254"), ("::1",)):
        with pytest.raises(OSError, match="not public"):
            await PublicResolver(Names(*addresses)).resolve("push.example.com", 443)
