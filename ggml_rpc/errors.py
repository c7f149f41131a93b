"""The package's exceptions; native status codes map to them in `from_code`."""

from __future__ import annotations


class RpcError(Exception):
    """Base of all errors of this package."""


class ProtocolError(RpcError):
    """Report bytes that break the wire format."""


class SessionError(RpcError):
    """Report a request that breaks a rule of its session: a foreign handle, a range outside its buffer."""


class GraphError(RpcError):
    """Report a graph that breaks a rule of its op, its types or its memory."""


class DeviceError(RpcError):
    """Report a device that cannot do, or failed to do, what it was asked."""


class CompileError(DeviceError):
    """Report a legal graph for which the device has no kernel."""


class ComputeError(DeviceError):
    """Report an illegal value found while a graph ran, such as an index out of range."""


class OutOfMemory(DeviceError):
    """Report an allocation that the device refused."""


class PlacementError(RpcError):
    """Report a model that cannot be placed on its devices as asked.

    Attributes
    ----------
    table : str
        What each device would hold and has, a line each; empty where memory is not what is missing.
    """

    def __init__(self, message: str, table: str = "") -> None:
        super().__init__(f"{message}\n{table}" if table else message)
        self.table = table


class Cancelled(RpcError):
    """Report a run that was cancelled."""


class DeadlineExceeded(RpcError):
    """Report a wait that made no progress within its deadline."""


class ConnectionLost(RpcError):
    """Report a connection that the peer or the network ended."""


class ServerRefused(RpcError):
    """Report a server that closed the connection in answer to a request, as servers do when a check fails."""


class VersionMismatch(RpcError):
    """Report a server whose protocol is not known, or a peer that does not speak the protocol at all."""


class ModelError(RpcError):
    """Report a model file that cannot be used."""


class ContextError(RpcError):
    """Report a context that a model cannot be run with, or tokens that do not fit into it."""


# By the numbers of `enum class Code` in csrc/core/status.h.
_BY_CODE: dict[int, type[RpcError]] = {
    1: ConnectionLost,
    2: ProtocolError,
    3: SessionError,
    4: GraphError,
    5: CompileError,
    6: DeviceError,
    7: ComputeError,
    8: Cancelled,
    9: DeadlineExceeded,
    10: ConnectionLost,
    11: OutOfMemory,
}


def from_code(code: int, text: str) -> RpcError:
    """Return the exception for a native status code."""
    return _BY_CODE.get(code, RpcError)(text)
