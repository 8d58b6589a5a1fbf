"""Endpoints as a user writes them: tcp://HOST:PORT and ipc://PATH, and who can reach them."""

import contextlib
import errno
import fcntl
import ipaddress
import os
import re
import socket
import stat
import struct
from pathlib import Path

from manychar.processes.errors import REFUSED_FOR_SAFETY, UserError
from manychar.processes.log import logger
from manychar.processes.subcommand import program

IPC_PATH_LENGTH = 107
CANNOT_BIND = "cannot bind to {}: {}; choose another --bind"
TAKEN = "another program uses it"
_SIOCGIFADDR = 0x8915
_TCP = re.compile(r"tcp://(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:/\[\]\s]+)):(?P<port>[0-9]{1,20}|\*)")
_EVERY_ADDRESS = re.compile(r"^tcp://(0\.0\.0\.0|\[::\]|\*):")


def is_endpoint(source: str) -> bool:
    """Whether a source is meant as a live server's endpoint, right or wrong, and not as a path."""
    return "://" in source


def check_endpoint(endpoint: str, *, to_connect: bool = False) -> None:
    """Raise UserError for what is no endpoint, cannot be one on this machine, or is taken."""
    if endpoint.startswith("ipc://@"):  # Linux's abstract names
        raise UserError(f"{endpoint}: a name that is no file is open to everyone: give a path")
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        if not 0 < len(path.encode()) <= IPC_PATH_LENGTH or "\0" in path:
            raise UserError(f"{endpoint}: an ipc path has 1 to {IPC_PATH_LENGTH} bytes, none is 0")
        if not to_connect and (why := _why_taken(path)):
            raise UserError(CANNOT_BIND.format(endpoint, why))
        return
    match = _TCP.fullmatch(endpoint)
    if match is None:
        form = "write it as tcp://HOST:PORT or ipc://PATH"
        form += "; of a live run, `manychar runs` shows it" * to_connect
        raise UserError(f"{endpoint or 'an empty text'}: not an endpoint: {form}")
    if match["port"] != "*" and int(match["port"]) > 65_535:
        raise UserError(f"{endpoint}: the port is not in 1 … 65,535")
    if to_connect and (match["port"] in ("*", "0") or match["host"] == "*"):
        raise UserError(f"{endpoint}: give the host and the port on which a server listens")
    if not _can_be_used(match["six"], match["host"]):
        raise UserError(f"{endpoint}: no such address, network interface or name can be here")


def _can_be_used(six: str | None, host: str) -> bool:
    """Whether it is one machine's address, or a name that can be looked up now or some day."""
    try:
        if six:
            socket.getaddrinfo(six, None, socket.AF_INET6, flags=socket.AI_NUMERICHOST)
            address = ipaddress.IPv6Address(six)
            has_interface = "%" in six or not address.is_link_local
            return has_interface and _is_of_one_machine(address.ipv4_mapped or address)
        with contextlib.suppress(OSError):  # in any of its forms
            return _is_of_one_machine(ipaddress.IPv4Address(socket.inet_aton(host)))
        is_name = host.isprintable() and not host.replace(".", "").isdecimal()
        return is_name and bool(host.encode("idna"))
    except (OSError, ValueError):
        return False


def _is_of_one_machine(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return not (address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"))


def bracketed(host: str) -> str:
    """Return a host as endpoints and URLs have it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def is_local(endpoint: str) -> bool:
    """Whether only processes on this machine can reach an endpoint."""
    match = _TCP.fullmatch(endpoint)
    if match is None:
        return endpoint.startswith("ipc://")
    return is_loopback(match["six"] or match["host"])


def is_loopback(name: str) -> bool:
    """Whether a name, an address or an interface is this machine's own loopback."""
    address = _address(_interface_address(name) or name)
    return name == "localhost" if address is None else address.is_loopback


def reachable(endpoint: str, host: str) -> str:
    """Return the endpoint of a server on a host as its clients have to give it."""
    return _EVERY_ADDRESS.sub(f"tcp://{host}:", endpoint)


def with_whole_path(endpoint: str) -> str:
    """Return an endpoint that holds in any working directory, where it is not too long."""
    whole = Path(endpoint.removeprefix("ipc://")).absolute()
    if not endpoint.startswith("ipc://") or len(os.fsencode(whole)) > IPC_PATH_LENGTH:
        return endpoint
    return f"ipc://{whole}"


def worker_command(endpoint: str, *, keys: bool) -> str:
    """Return the command by which a worker of any machine joins what listens at an endpoint."""
    here = reachable(endpoint, socket.gethostname())
    return f"manychar worker {here}{' --key FILE' if keys else ''}"


def require_safe(
    endpoint: str, *, keys: bool, insecure: bool, command: str = "server …", name: str = "KEYS"
) -> None:
    """Refuse to listen where strangers can connect.

    `command` is shown as it would be right, with a directory of keys called `name`.
    """
    check_endpoint(endpoint)
    if keys and insecure:
        raise UserError("--keys and --insecure: give one of them")
    if not is_local(endpoint) and not keys and not insecure:
        raise UserError(
            f"{endpoint} may be reached from other machines, and there are no keys:"
            f" `{program()} keys create {name}`, then `{program()} {command} --keys {name}`"
            " (or add --insecure if you trust everyone on the network)",
            code=REFUSED_FOR_SAFETY,
        )
    if insecure and not is_local(endpoint):
        logger.info(
            f"--insecure: anyone who can reach {endpoint} can join this run and read its text"
        )


def require_loopback(host: str, flag: str, *, insecure: bool) -> None:
    """Refuse to serve HTTP, which has no authentication here, where strangers can connect."""
    if not host.strip():
        raise UserError(f"{flag}: it is empty; give an address, or leave it out")
    if not is_loopback(host) and not insecure:
        raise UserError(
            f"{host} may be reached from other machines, and there is no authentication: leave"
            f" {flag} out and forward the port by `ssh -L` (or add --insecure if you trust"
            " everyone on the network)",
            code=REFUSED_FOR_SAFETY,
        )


def zmq_ipv6(endpoint: str) -> int:
    """Return what ZMQ_IPV6 is to be for an endpoint: 1 for an IPv6 address, else 0."""
    return int(endpoint.startswith("tcp://["))


def host_name_of(endpoint: str) -> tuple[str, str] | None:
    """Return the name and the port in an endpoint; None where it has an address."""
    match = _TCP.fullmatch(endpoint)
    if match is None or match["host"] in (None, "*") or _address(match["host"]) is not None:
        return None
    return match["host"], match["port"]


def ipc_file(endpoint: str) -> os.stat_result | None:
    """Return what is at an ipc endpoint's path, if anything."""
    try:
        return os.lstat(endpoint.split("ipc://", 1)[1])
    except (IndexError, OSError):
        return None


def _why_taken(path: str) -> str:
    """Return why nobody may bind to a path. libzmq first removes what is there, whatever it is."""
    if (found := ipc_file(f"ipc://{path}")) is None:
        return ""
    if not stat.S_ISSOCK(found.st_mode):
        return "a file or directory is there"
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.settimeout(0)  # the queue of one that is stopped can be full
        return "" if visitor.connect_ex(path) == errno.ECONNREFUSED else TAKEN


def _interface_address(name: str) -> str | None:
    """Return the IPv4 address that libzmq takes for a network interface, its first one."""
    with contextlib.suppress(OSError, ValueError), socket.socket(type=socket.SOCK_DGRAM) as udp:
        socket.if_nametoindex(name)  # its checks of the name: the kernel would cut it
        request = struct.pack("40s", os.fsencode(name))
        return socket.inet_ntoa(fcntl.ioctl(udp, _SIOCGIFADDR, request)[20:24])
    return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
