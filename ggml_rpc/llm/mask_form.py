"""What older servers ask of the masks of flash attention."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ggml_rpc.client.remote import RemoteDevice
from ggml_rpc.errors import ContextError

if TYPE_CHECKING:
    from ggml_rpc.client.device import Device

_NO_PADDING_SINCE = (3, 6)


def fuses(device: Device, *, windowed: bool) -> bool:
    """Tell whether a device has flash attention that is right, for layers with a sliding window or without.

    That of ik_llama.cpp's servers gives wrong results, or ends the server, where a window hides the first positions:
    whole blocks of hidden cells.
    """
    ik = isinstance(device, RemoteDevice) and device.server.dialect.ik_meaning
    return device.speaks("FLASH_ATTN_EXT") and not (ik and windowed)


def mask_multiple(devices: Iterable[Device], *, flash: bool, windowed: bool) -> int:
    """Return the number whose multiples the rows of a mask must be, so that all devices take it.

    Servers before 3.6.0 pad to 64 tokens and those of ik_llama.cpp to 16: their GPU kernels read whole tiles of a mask.

    Parameters
    ----------
    devices : iterable of Device
        Devices with layers.
    flash : bool
        Whether attention is fused.
    windowed : bool
        Whether layers have a sliding window.

    Raises
    ------
    ContextError
        If the layers have a window and a device's flash attention has none, see `fuses`.
    """
    multiple = 1
    for device in devices:
        if not flash or not isinstance(device, RemoteDevice):
            continue
        dialect = device.server.dialect
        if dialect.ik_meaning:
            if windowed:
                raise ContextError(
                    f"{device}: flash attention of ik_llama.cpp's servers fails where a sliding window hides the first"
                    " positions: turn flash attention off for this model"
                )
            multiple = max(multiple, 16)
        elif dialect.announce < _NO_PADDING_SINCE:
            multiple = max(multiple, 64)
    return multiple
