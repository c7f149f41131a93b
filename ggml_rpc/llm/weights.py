"""The weights of one model where they were placed: what a loader hands to a context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ggml_rpc.errors import ModelError

from .arch import Architecture, WeightSpec, architecture_of
from .hparams import HParams

if TYPE_CHECKING:
    from ggml_rpc.client.device import Device
    from ggml_rpc.graph._tensor import Tensor

    from .gguf_file import GgufFile, GgufTensor

EMBEDDING = "token_embd.weight"

PLAIN_TYPES = ("F32", "F16", "BF16")
"""Types of weights that are not quantised."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file whose settings and tensors were checked.

    Attributes
    ----------
    file : GgufFile
        The file, open for as long as weights are read from it.
    architecture : Architecture
        What it declares.
    hparams : HParams
        Its settings.
    specs : tuple of WeightSpec
        The weights that it has; optional ones that it lacks are left out.
    """

    file: GgufFile
    architecture: Architecture
    hparams: HParams
    specs: tuple[WeightSpec, ...]

    @classmethod
    def read(cls, file: GgufFile) -> ModelFile:
        """Check a file.

        Raises
        ------
        ModelError
            If its architecture is not known, a setting cannot be, or a tensor is missing, has another shape or holds
            no weights.
        """
        architecture = architecture_of(file)
        hparams = architecture.hparams(file)
        specs = []
        for spec in architecture.weights(hparams, file.tensors):
            found = file.optional if spec.optional else file.require
            tensor = found(spec.tensor, spec.ne[::-1])
            if tensor is not None:
                _check_type(tensor, matrix=len(spec.ne) > 1)
                specs.append(spec)
        return cls(file, architecture, hparams, tuple(specs))

    def tensor(self, spec: WeightSpec) -> GgufTensor:
        """Return the file's tensor of a weight."""
        return self.file.tensors[spec.tensor]


def _check_type(tensor: GgufTensor, *, matrix: bool) -> None:
    """Refuse whole numbers, and vectors in the types of matrices."""
    if tensor.type not in PLAIN_TYPES and not (matrix and tensor.spec.is_quantized):
        wanted = f"{', '.join(PLAIN_TYPES)}{' or quantised' if matrix else ''}"
        raise ModelError(f"{tensor.path}: tensor {tensor.name!r} is {tensor.type}, but must be {wanted}")


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's weights on devices.

    Attributes
    ----------
    model : ModelFile
        Where they come from. Weights of the place INPUT are read from it: they stay on the host.
    tensors : Mapping of str to Tensor
        Every other weight by its name, a leaf with a place. `token_embd.weight` is among them if it was placed on a
        device for the lookup of tokens too.
    layer_device : sequence of Device
        Where each layer's cache lies and its operations without weights run.
    output_device : Device
        The same for what follows the last layer.
    """

    model: ModelFile
    tensors: Mapping[str, Tensor]
    layer_device: Sequence[Device]
    output_device: Device
    _parts: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def hparams(self) -> HParams:
        """Return the model's settings."""
        return self.model.hparams

    @property
    def devices(self) -> list[Device]:
        """Return the devices in the order in which layers use them."""
        return list(dict.fromkeys((*self.layer_device, self.output_device)))

    def layer(self, il: int) -> Mapping[str, Tensor]:
        """Return a layer's weights by their names after `blk.N.`."""
        return self._part(f"blk.{il}.")

    def head(self) -> Mapping[str, Tensor]:
        """Return the weights of the head."""
        return self._part("output")

    def _part(self, prefix: str) -> Mapping[str, Tensor]:
        if not self._parts:
            for name, tensor in self.tensors.items():
                part = name[: name.index(".", 4) + 1] if name.startswith("blk.") else "output"
                key = name.removeprefix(part) if part != "output" else name
                self._parts.setdefault(part, {})[key] = tensor
        return self._parts.get(prefix, {})
