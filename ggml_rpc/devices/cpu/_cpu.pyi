from ggml_rpc.devices._device import NativeDevice

from .numa import Placement

def levels(*, emulated: bool = False) -> list[str]: ...

class CpuPool:
    def __init__(
        self,
        threads: int,
        level: str | None = None,
        graph_timeout: float = 0.0,
        placement: Placement | None = None,
    ) -> None: ...
    @property
    def level(self) -> str: ...
    def device(self, name: str = "CPU") -> CpuDevice: ...

class CpuDevice(NativeDevice): ...
