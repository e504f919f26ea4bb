"""What decides how the DICOM node behaves: who may call, where segmentations go, and the limits."""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from polypseg.errors import UsageError
from polypseg.io.pictures import MAX_PIXELS

MIB = 1 << 20
# 16 ASCII characters without the backslash, not all of them spaces (PS3.5 6.2, AE); commas and @ would be ambiguous.
_TITLE = re.compile(r"[!-?A-\[\]-~](?:[ -?A-\[\]-~]{0,14}[!-?A-\[\]-~])?")
ANY = "*"


@dataclass(frozen=True)
class Node:
    """Another application entity: its title, host and TCP port."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Node:
        """``AE@host:port``. Raises ``UsageError``."""
        title, _, address = text.rpartition("@")
        host, _, port = address.rpartition(":")
        if not _TITLE.fullmatch(title) or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(f"--to {text}: must be AE@host:port, as PACS@10.0.0.5:104, or an https address")
        return cls(title, host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


@dataclass(frozen=True)
class Caller:
    """Who may call: an AE title or ``*``, and an IP address, a network, a host's name or ``*``."""

    title: str
    address: str

    @classmethod
    def parse(cls, text: str) -> Caller:
        """``AE@address``. Raises ``UsageError``."""
        title, _, address = text.rpartition("@")
        if (title != ANY and not _TITLE.fullmatch(title)) or not re.fullmatch(r"\*|[\w.:/-]+", address):
            raise UsageError(f"--allow {text}: must be AE@address, as ENDO1@10.0.0.7 or *@10.0.0.0/24")
        if "/" in address and _network(address) is None:
            raise UsageError(f"--allow {text}: {address} is no network; write it as 10.0.0.0/24")
        return cls(title, address)

    def has_address(self, address: str) -> bool:
        """Whether it may call from an IP address; names are looked up each time, as containers change theirs."""
        if self.address == ANY:
            return True
        known = _network(self.address)
        networks = [known] if known is not None else _looked_up(self.address)
        one = _plain(ipaddress.ip_address(address.partition("%")[0]))
        return any(one in network for network in networks)

    def matches(self, title: str, address: str) -> bool:
        """Whether it may call by this title from this address."""
        return self.title in (ANY, title) and self.has_address(address)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _plain(address: _Address) -> _Address:
    """An IPv4 address that is written as IPv6, as such."""
    return getattr(address, "ipv4_mapped", None) or address


def _network(text: str) -> _Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _looked_up(name: str) -> list[_Network]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [ipaddress.ip_network(_plain(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]))) for entry in found]


@dataclass(frozen=True)
class DicomSettings:
    """What the DICOM node is told.

    Args:
        state: folder for the worklist and the objects in it.
        to: where segmentations go: ``AE@host:port``, or the address of a DICOMweb server (http, https).
        title: the node's own AE title.
        allow: who may call, each ``AE@address``; empty lets in whoever reaches the port.
        tls_cert: PEM file of the node's certificate (and what signed it); with it callers must use TLS.
        tls_key: PEM file of its private key.
        tls_ca: PEM file of those whose certificates are trusted; with it callers must show one.
        to_tls: whether segmentations are sent by TLS; for an AE only, an https address says so itself.
        commitment: whether the AE is asked to say that it keeps them (storage commitment).
        authorization: what a DICOMweb server is sent as ``Authorization``.
        plane: whether segmentations are placed in a plane that is made up, as ``write_segmentation`` does it.
        associations: that may be open at once; more are refused.
        max_bytes: of an object.
        max_pixels: of a frame.
        keep_days: for which is known what was answered.

    Raises:
        UsageError: a value is out of its range, or two contradict each other.
    """

    state: Path
    to: str
    title: str = "POLYPSEG"
    allow: Sequence[str] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    to_tls: bool = False
    commitment: bool = False
    authorization: str | None = None
    plane: bool = False
    associations: int = 16
    max_bytes: int = 4096 * MIB
    max_pixels: int = 20_000_000
    keep_days: float = 30.0

    def __post_init__(self) -> None:
        for option in ("associations", "max_mib", "max_pixels"):
            if not getattr(self, option.replace("mib", "bytes")) > 0:
                raise UsageError(f"--{option}: must be above 0")
        if not 0 < self.keep_days <= 36_500:
            raise UsageError(f"--keep_days {self.keep_days:g}: must be above 0 and at most 36500")
        if self.associations > 256:
            raise UsageError(f"--associations {self.associations}: must be 256 or less")
        if self.max_pixels > MAX_PIXELS:
            raise UsageError(f"--max_pixels {self.max_pixels}: frames of more than {MAX_PIXELS} are never read")
        if not _TITLE.fullmatch(self.title):
            raise UsageError(f"--ae_title {self.title}: must be 1 to 16 ASCII characters, without @ and backslash")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls_cert and --tls_key: are a pair; give both")
        if self.tls_ca is not None and self.tls_cert is None and not self.sends_tls:
            raise UsageError("--tls_ca: needs --tls_cert and --tls_key, --to_tls or an https address")
        self.callers  # noqa: B018  (checks them)
        self.node  # noqa: B018

    @functools.cached_property
    def web(self) -> str | None:
        """The DICOMweb server's address, without a slash at its end; None where segmentations go to an AE."""
        if not re.match(r"https?://", self.to):
            return None
        parts = urlsplit(self.to)
        if not parts.hostname or parts.query or parts.fragment or parts.username:
            raise UsageError(f"--to {parts.scheme}://…: must be as https://host/dicom-web; credentials: see --help")
        return self.to.rstrip("/")

    @functools.cached_property
    def node(self) -> Node | None:
        """The AE that segmentations go to; None where they go to a DICOMweb server."""
        if self.web is not None:
            if self.to_tls:
                raise UsageError("--to_tls: is for an AE; an https address uses TLS by itself")
            if self.commitment:
                raise UsageError("--commitment: is for an AE; a DICOMweb server cannot be asked")
            return None
        return Node.parse(self.to)

    @functools.cached_property
    def callers(self) -> tuple[Caller, ...]:
        """Who may call; empty for everybody."""
        return tuple(map(Caller.parse, self.allow))

    @property
    def sends_tls(self) -> bool:
        """Whether segmentations are sent by TLS."""
        return self.to_tls or self.to.startswith("https://")

    @property
    def decode_memory(self) -> int:
        """Bytes that decoding one frame may take, for the most; as of the HTTP service."""
        return 512 * MIB + 64 * self.max_pixels

    def incoming_tls(self) -> ssl.SSLContext | None:
        """What callers' connections are wrapped in; None for nothing. Raises ``UsageError``."""
        if self.tls_cert is None:
            return None
        return self._tls(ssl.PROTOCOL_TLS_SERVER)

    def outgoing_tls(self) -> ssl.SSLContext | None:
        """What connections for segmentations are wrapped in; None for nothing. Raises ``UsageError``."""
        return self._tls(ssl.PROTOCOL_TLS_CLIENT) if self.sends_tls else None

    def _tls(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        file: Path | None = self.tls_cert
        try:
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key)
            file = self.tls_ca
            if self.tls_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self.tls_ca)
            elif protocol == ssl.PROTOCOL_TLS_CLIENT:
                context.load_default_certs()
        except OSError as error:  # ssl.SSLError too
            option = "tls_ca" if file is self.tls_ca else "tls_cert"
            reason = "is missing" if isinstance(error, FileNotFoundError) else "is no PEM file that can be used"
            what = f"--{option} {file}: {reason}" + (", or --tls_key" if option == "tls_cert" else "")
            raise UsageError(f"{what}; name PEM files") from error
        return context
