"""The devices of one run: those of all servers and of this machine, under names like llama.cpp's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

from ggml_rpc.client.device import Device
from ggml_rpc.client.local import LocalDevice, local_devices
from ggml_rpc.client.remote import RemoteDevice, Server, connect
from ggml_rpc.errors import DeviceError

if TYPE_CHECKING:
    from ggml_rpc.spec.dialects import Dialect

CPU = "CPU"
NONE = "none"
"""In place of a list of devices: none but this machine's CPU."""

# llama.cpp's name of a remote buffer type, which users copy from its logs: "RPC0[127.0.0.1:50052]".
_WITH_ENDPOINT = re.compile(r"(?P<name>[^\[\]]+)\[.*\]")


class DeviceSet:
    """Devices by name: `RPC0`, `RPC1`, ... in the order of the servers and of their devices, and this machine's own.

    Parameters
    ----------
    servers : sequence of Server
        Their devices are numbered through, whatever they were called before.
    local : sequence of LocalDevice
        Devices of this machine, the CPU among them.
    owned : bool
        Close the servers with this object.

    Attributes
    ----------
    host : LocalDevice
        The CPU of this machine.
    """

    def __init__(self, servers: Sequence[Server], local: Sequence[LocalDevice], *, owned: bool = False) -> None:
        self.servers = tuple(servers)
        self.local = tuple(local)
        self._owned = owned
        remote = [device for server in servers for device in server.devices]
        for number, device in enumerate(remote):
            device.name = f"RPC{number}"
        self.remote: tuple[RemoteDevice, ...] = tuple(remote)
        self.host = next(device for device in local if device.name == CPU)

    @property
    def all(self) -> list[Device]:
        """Return the devices, remote ones first."""
        return [*self.remote, *self.local]

    @property
    def accelerators(self) -> list[Device]:
        """Return all but the host's CPU: what takes a model's layers unless something else is asked for."""
        return [device for device in self.all if device is not self.host]

    def find(self, name: str) -> Device:
        """Return a device by its name, `CPU`, `RPC0` or `RPC0[host:port]`.

        Raises
        ------
        DeviceError
            If there is none; the message lists those there are.
        """
        short = name.strip()
        if (match := _WITH_ENDPOINT.fullmatch(short)) is not None:
            short = match["name"]
        found = next((device for device in self.all if device.name.lower() == short.lower()), None)
        if found is None:
            raise DeviceError(f"unknown device {name!r}; this run has {', '.join(map(str, self.all))}")
        return found

    def select(self, names: str | Sequence[str] | None) -> list[Device]:
        """Return the devices that are to take a model's layers.

        Parameters
        ----------
        names : str or sequence of str, optional
            Names, as a list or separated by commas; "none" for the CPU alone; by default all accelerators, or the CPU
            where there are none.

        Raises
        ------
        DeviceError
            If a name is not known or stands twice, or the list is empty.
        """
        if names is None:
            return self.accelerators or [self.host]
        given = names.split(",") if isinstance(names, str) else list(names)
        if [name.strip().lower() for name in given] == [NONE]:
            return [self.host]
        chosen = [self.find(name) for name in given if name.strip()]
        if not chosen:
            raise DeviceError(f"the list of devices is empty; this run has {', '.join(map(str, self.all))}")
        for i, device in enumerate(chosen):
            if device in chosen[:i]:
                raise DeviceError(f"device {device.name} stands twice in the list of devices")
        return chosen

    def lost(self) -> list[RemoteDevice]:
        """Return the devices whose server is gone."""
        return [device for device in self.remote if device.server.closed]

    def close(self) -> None:
        """End the connections that `open_devices` made; their servers free all that was allocated over them."""
        if self._owned:
            for server in self.servers:
                server.close()

    def __enter__(self) -> DeviceSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_devices(
    rpc: str | Sequence[str] = (),
    *,
    threads: int | None = None,
    timeout: float = 60.0,
    connect_timeout: float = 10.0,
    dialect: Dialect | str | None = None,
) -> DeviceSet:
    """Connect to all servers at once and open the devices of this machine.

    Parameters
    ----------
    rpc : str or sequence of str
        Endpoints, as a list or separated by commas: `hostA:50052,hostB`.
    threads : int, optional
        Threads of this machine's CPU; by default half the cores.
    timeout : float
        Seconds without any progress after which a server that owes an answer counts as lost.
    connect_timeout : float
        Seconds for connecting and for HELLO, each.
    dialect : Dialect or str, optional
        As in `ggml_rpc.connect`.

    Returns
    -------
    DeviceSet
        A context manager that closes the connections.

    Raises
    ------
    ConnectionLost, DeadlineExceeded, VersionMismatch
        From the first of the servers that cannot be used; the connections to the others are closed.
    ValueError
        If an endpoint is malformed.
    """
    endpoints = split_endpoints(rpc)
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    local = local_devices(threads=threads)
    if not endpoints:
        return DeviceSet((), local, owned=True)
    pool = ThreadPoolExecutor(len(endpoints), thread_name_prefix="connect")
    connecting = [
        pool.submit(connect, endpoint, dialect=dialect, timeout=timeout, connect_timeout=connect_timeout)
        for endpoint in endpoints
    ]
    try:
        return DeviceSet([future.result() for future in connecting], local, owned=True)
    except BaseException:
        for future in connecting:
            future.cancel()
            # One that is still connecting is closed as soon as it is there.
            future.add_done_callback(_close_result)
        raise
    finally:
        pool.shutdown(wait=False)


def split_endpoints(rpc: str | Sequence[str]) -> list[str]:
    """Return the endpoints in a list, or in a text that separates them by commas.

    Raises
    ------
    ValueError
        If one of several is empty.
    """
    given = rpc.split(",") if isinstance(rpc, str) else list(rpc)
    if given == [""]:
        return []
    endpoints = [endpoint.strip() for endpoint in given]
    if not all(endpoints):
        raise ValueError(f"the list of servers {','.join(given)!r} has an empty entry: write host:port,host:port")
    return endpoints


def _close_result(future: Future[Server]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
