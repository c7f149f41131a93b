from collections.abc import Iterable
from typing import NamedTuple

from typing_extensions import Buffer

from ggml_rpc.wire._codec import Codec

class CheckedTensor(NamedTuple):
    id: int
    name: str
    type: int
    op: int
    flags: int
    use_count: int
    ne: tuple[int, ...]
    nb: tuple[int, ...]
    buffer: int
    offset: int
    extent: int
    src: tuple[int, ...]
    compute: bool

class CheckedGraph:
    @property
    def uid(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def nodes(self) -> list[int]: ...
    @property
    def tensors(self) -> list[CheckedTensor]: ...

def check_graph(
    codec: Codec, payload: Buffer, buffers: Iterable[tuple[int, ...]], n_devices: int = 1
) -> CheckedGraph: ...
