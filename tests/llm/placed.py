"""Place all weights of a file on given devices: the least that a context needs, without a loader's cares."""

from __future__ import annotations

from collections.abc import Sequence

from ggml_rpc.client.device import Device
from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.llm.arch import INPUT
from ggml_rpc.llm.gguf_file import GgufFile
from ggml_rpc.llm.weights import EMBEDDING, ModelFile, Weights


def place(file: GgufFile, devices: Sequence[Device], *, embedding: bool = False) -> Weights:
    """Return a model's weights, its layers spread evenly over the devices; the last one has the head.

    Parameters
    ----------
    file : GgufFile
        The model.
    devices : sequence of Device
        Where to.
    embedding : bool
        Keep the table of tokens on the first device instead of on the host.
    """
    model = ModelFile.read(file)
    n = model.hparams.n_layer
    layer_device = [devices[il * len(devices) // n] for il in range(n)]
    tensors: dict[str, Tensor] = {}
    by_device: dict[Device, list[Tensor]] = {}
    for spec in model.specs:
        if spec.layer == INPUT and not (embedding and spec.name == EMBEDDING):
            continue
        device = devices[0] if spec.layer == INPUT else devices[-1] if spec.layer < 0 else layer_device[spec.layer]
        found = model.tensor(spec)
        tensors[spec.name] = Tensor(found.type, found.ne, name=spec.name)
        by_device.setdefault(device, []).append(tensors[spec.name])
    sources = {spec.name: model.tensor(spec) for spec in model.specs}
    for device, leaves in by_device.items():
        device.place(leaves)
        for t in leaves:
            device.write(t, sources[t.name].data.data)
    return Weights(model, tensors, layer_device, devices[-1])
