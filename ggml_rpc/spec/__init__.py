"""Pure data: ops, types, enums, limits and wire dialects.

Nothing here imports another part of the package; every other layer may import this one.
Internal ids of ops, types, unary and GLU kinds are the numbers that protocol 8.0.0 uses on the wire.
"""
