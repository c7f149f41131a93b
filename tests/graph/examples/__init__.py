"""Legal graphs of every op that has rules, with what may change in each and stay legal.

`EXAMPLES` holds them. An example's last node is its subject; slot -1 means the subject's result, slot i its source i.
"""

from . import (
    along_rows,
    attention,
    convolutions,
    copies,
    elementwise,
    ik,
    ik_sparse,
    products,
    recurrent,
    rows,
    shapes,
    training,
)
from .case import EXAMPLES, IK_3_5, ONLY, RESULT, Example, arena, words

__all__ = [
    "EXAMPLES",
    "IK_3_5",
    "ONLY",
    "RESULT",
    "Example",
    "along_rows",
    "arena",
    "attention",
    "convolutions",
    "copies",
    "elementwise",
    "ik",
    "ik_sparse",
    "products",
    "recurrent",
    "rows",
    "shapes",
    "training",
    "words",
]
