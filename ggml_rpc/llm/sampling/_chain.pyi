import numpy as np
from numpy.typing import NDArray

class Chain:
    def __init__(
        self,
        n_vocab: int,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        repeat_penalty: float,
        frequency_penalty: float,
        presence_penalty: float,
    ) -> None: ...
    def change(self, ids: NDArray[np.int32], counts: NDArray[np.int32], biases: NDArray[np.float32]) -> None: ...
    def row(self, logits: NDArray[np.float32]) -> None: ...
    def few(self, ids: NDArray[np.int32], logits: NDArray[np.float32], changed: NDArray[np.float32]) -> bool: ...
    def token(self, share: float) -> int: ...
    def survivors(self) -> tuple[NDArray[np.int32], NDArray[np.float64]]: ...
