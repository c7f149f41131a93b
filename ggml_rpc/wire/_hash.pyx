"""FNV-1a, 64 bits."""

from libc.stdint cimport uint8_t, uint64_t


cdef extern from "hash/fnv.h" namespace "ggr" nogil:
    const uint64_t FNV_OFFSET
    uint64_t c_fnv1a_64 "ggr::fnv1a_64"(const uint8_t *, size_t, uint64_t)


def fnv1a_64(const uint8_t[::1] data, seed=None) -> int:
    """Return the FNV-1a-64 of the bytes, or go on from the hash of what came before them (`seed`)."""
    cdef uint64_t start = FNV_OFFSET if seed is None else seed
    cdef size_t size = data.shape[0]
    if size == 0:
        return start
    with nogil:
        start = c_fnv1a_64(&data[0], size, start)
    return start
