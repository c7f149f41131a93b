"""Protocol 2.0.0 of llama.cpp (April to October 2025): one device, none of its commands names it.

Nine op tables went by this number; this is the one of August 2025 (from 08-14 to 08-21), which llama-cpp-python 0.3.16
carries.
"""

from __future__ import annotations

from ..commands import Command
from ..enums import UnaryKind
from .base import commands_without, derive, without, without_ops
from .llama_3_0 import LLAMA_3_0_OCTOBER

LLAMA_2_0 = derive(
    LLAMA_3_0_OCTOBER,
    name="2.0.0",
    announce=(2, 0, 0),
    aliases=("2.0", "2", "llama.cpp-2.0.0", "llama.cpp-2.0"),
    commands=commands_without(LLAMA_3_0_OCTOBER.commands, Command.DEVICE_COUNT),
    command_limit=15,
    has_devices=False,
    ops=without_ops(LLAMA_3_0_OCTOBER.ops, "IM2COL_3D", "CONV_3D"),
    unary=without(LLAMA_3_0_OCTOBER.unary, UnaryKind.XIELU),
)

TABLES = (LLAMA_2_0,)
