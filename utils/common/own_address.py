"""How machines reach each other."""

import fcntl
import socket
import struct
import time

from utils.common.errors import InputError

SIOCGIFADDR = 0x8915  # of Linux: asks for the address of a network interface


def own_address(host: str) -> tuple[str, str]:
    """Return the address with which this machine reaches another one, and the interface that has it.

    The machine's own name is of no use for that: many take it for 127.0.0.1.

    Parameters
    ----------
    host : str

    Returns
    -------
    address : str
    interface : str
        Such as ``eth0``; empty if it is not found, as with IPv6.

    Raises
    ------
    InputError
        If the other machine is not known, or there is no way to it.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as route:
            route.connect(target)  # of datagrams: nothing is sent
            address = route.getsockname()[0]
            return address, next((name for _, name in socket.if_nameindex() if _address_of(name, route) == address), "")
    except OSError as error:
        raise InputError(f"RENDEZVOUS: {host} cannot be reached ({error}); give the address of machine 0") from error


def wait_for(endpoint: str, seconds: float) -> None:
    """Wait until a machine answers at an address and port; torchrun itself gives up after a minute or two.

    Raises
    ------
    InputError
        If it does not answer in time.
    """
    host, _, port = endpoint.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), 5.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"RENDEZVOUS: nothing answers at {endpoint} within {seconds:.0f} s ({error}); start machine 0 "
                    "(NODE_RANK=0), and let no firewall stand between"
                ) from error
        time.sleep(1.0)


def _address_of(interface: str, some_socket: socket.socket) -> str:
    """Return the IPv4 address of an interface; empty if it has none."""
    try:
        found = fcntl.ioctl(some_socket.fileno(), SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
    except OSError:
        return ""
    return socket.inet_ntoa(found[20:24])
