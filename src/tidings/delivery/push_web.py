"""Web push: encrypted messages to the push services of browsers.

The protocol is RFC 8030, the encryption RFC 8291 (by http_ece), the signature that says who sends,
VAPID, RFC 8292. Addresses come from strangers: only public ones are ever connected to, also where
a name leads to another address later, and nothing is redirected.

What encrypts and signs is imported when it is first wanted: it takes a tenth of the time that a
service has for its start, and most start long before anybody subscribes.
"""

from __future__ import annotations

import base64
import binascii
import socket
from collections import OrderedDict
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from tidings import wire
from tidings.clock import Clock
from tidings.config import PushTargets
from tidings.delivery.push_senders import BODY_BYTES_MAX, Gone, Notice, Refused, TryLater
from tidings.delivery.push_senders import Subscription as Subscribed
from tidings.errors import FieldError, ValidationFailed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

KIND = "web"
SEND_TIMEOUT_S = 10.0
CONNECTIONS_MAX = 64
NAMES_LIFE_S = 30
SIGNATURE_LIFE_S = 12 * 3_600
"""At most a day (RFC 8292)."""
SIGNATURE_MARGIN_S = 3_600
AUDIENCES_MAX = 200
"""Push services whose signature is remembered."""
RETRY_AFTER_S_MAX = 30.0
"""A push service that wants to be left alone for longer is asked again after so long."""
POINT_BYTES, AUTH_BYTES = 65, 16
HTTPS_PORT = 443
_TRANSLATED = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
"""IPv6 addresses that stand for any IPv4 address (RFC 6052, RFC 8215)."""
_PROTOCOLS = IPv4Network("192.0.0.0/24")
"""Assigned to protocols (RFC 6890); a provider has its metadata there."""


class WebPush:
    """Sends to browsers, signed with the key that is made from the store's own secret."""

    def __init__(self, secret: bytes, contact: str, targets: PushTargets, clock: Clock) -> None:
        """`contact` is a mailto: or https: address that push services may write to."""
        self._secret = secret
        self._contact = contact
        self._is_loopback_allowed = targets == "loopback"
        self._clock = clock
        self._signatures: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._session: aiohttp.ClientSession | None = None

    @cached_property
    def _key(self) -> ec.EllipticCurvePrivateKey:
        from cryptography.hazmat.primitives.asymmetric import ec

        return ec.derive_private_key(_scalar(self._secret), ec.SECP256R1())

    @cached_property
    def public_key(self) -> str:
        """What browsers subscribe with: an uncompressed point on P-256 as base64url."""
        return _text(_point(self._key.public_key()))

    def check(self, subscription: wire.PushSubscription) -> None:
        """See Sender."""
        from cryptography.hazmat.primitives.asymmetric import ec

        if not self._is_allowed(subscription.endpoint):
            raise _refused("endpoint", "It is not an https address of a public push service.")
        try:
            point = _bytes(subscription.keys.p256dh)
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
            is_point = len(point) == POINT_BYTES
        except (binascii.Error, ValueError):
            is_point = False
        if not is_point:
            raise _refused("keys.p256dh", "It is not a point on P-256.")
        try:
            is_secret = len(_bytes(subscription.keys.auth)) == AUTH_BYTES
        except (binascii.Error, ValueError):
            is_secret = False
        if not is_secret:
            raise _refused("keys.auth", f"It does not have {AUTH_BYTES} bytes.")

    async def send(self, subscription: Subscribed, notice: Notice) -> None:
        """See Sender."""
        endpoint = subscription.endpoint
        if len(notice.body) > BODY_BYTES_MAX or not self._is_allowed(endpoint):
            raise Refused
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Encoding": "aes128gcm",
            "TTL": str(notice.life_s),
            "Urgency": "high" if notice.is_urgent else "low",
            "Topic": notice.topic,
            "Authorization": f"vapid t={self._signature(endpoint)}, k={self.public_key}",
        }
        try:
            async with self._connections().post(
                endpoint,
                data=_encrypted(notice.body, subscription.keys),
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=SEND_TIMEOUT_S),
            ) as answer:
                status, retry_after = answer.status, answer.headers.get("Retry-After", "")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise TryLater(type(error).__name__) from error
        if status in (404, 410):
            raise Gone
        if status == 429 or status >= 500:
            wait_s = float(retry_after) if retry_after.isdecimal() else 0.0
            raise TryLater(str(status), retry_after_s=min(wait_s, RETRY_AFTER_S_MAX))
        if not 200 <= status < 300:
            raise Refused(str(status))

    async def close(self) -> None:
        """See Sender."""
        if self._session is not None:
            await self._session.close()

    def _is_allowed(self, endpoint: str) -> bool:
        try:
            parts = urlsplit(endpoint)
            host, port = parts.hostname, parts.port
        except ValueError:
            return False
        if host is None or parts.username is not None or parts.fragment:
            return False
        if self._is_loopback_allowed and host == "127.0.0.1":
            return parts.scheme in ("http", "https")
        try:
            return parts.scheme == "https" and port in (None, HTTPS_PORT) and is_public(host)
        except ValueError:  # a name, which is looked at when it is resolved
            return parts.scheme == "https" and port in (None, HTTPS_PORT) and "." in host

    def _signature(self, endpoint: str) -> str:
        """The token for the push service, made once in a while."""
        import jwt

        parts = urlsplit(endpoint)
        audience = f"{parts.scheme}://{parts.netloc}"
        now_s = self._clock() // 1000
        expires_s, token = self._signatures.get(audience, (0, ""))
        if expires_s - now_s < SIGNATURE_MARGIN_S:
            expires_s = now_s + SIGNATURE_LIFE_S
            claims = {"aud": audience, "exp": expires_s, "sub": self._contact}
            token = jwt.encode(claims, self._key, "ES256")
            self._signatures[audience] = expires_s, token
            while len(self._signatures) > AUDIENCES_MAX:
                self._signatures.popitem(last=False)
        return token

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=CONNECTIONS_MAX, resolver=PublicResolver(), ttl_dns_cache=NAMES_LIFE_S
            )
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses alone; one that has any other is not found at all."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver or aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses. Raises OSError."""
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(each["host"]) for each in found):
            raise OSError(f"{host} leads to an address that is not public")
        return found

    async def close(self) -> None:
        """Let go of the resolver."""
        await self._resolver.close()


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet. Raises ValueError for none.

    Neither private nor local to a link, a machine or a provider, as the metadata of clouds are,
    nor one that stands for such an address of IPv4.
    """
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if any(ip in network for network in _TRANSLATED):
            return False
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner:
            return is_public(str(inner))
    elif ip in _PROTOCOLS:
        return False
    return ip.is_global and not ip.is_multicast


def _encrypted(body: bytes, keys: dict[str, str]) -> bytes:
    import http_ece  # type: ignore[import-untyped]
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        encrypted: bytes = http_ece.encrypt(
            body,
            private_key=ec.generate_private_key(ec.SECP256R1()),
            dh=_bytes(keys["p256dh"]),
            auth_secret=_bytes(keys["auth"]),
            version="aes128gcm",
        )
    except (http_ece.ECEException, InvalidTag, ValueError) as error:
        raise Refused from error
    return encrypted


def _scalar(secret: bytes) -> int:
    """A private key of P-256 from 32 random bytes."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    return int.from_bytes(secret) % (order - 1) + 1


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    """Raises ValueError for what is not base64url."""
    padded = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
    return base64.b64decode(padded, altchars=b"-_", validate=True)


def _refused(field: str, detail: str) -> ValidationFailed:
    return ValidationFailed(detail, errors=(FieldError(field, detail),))
