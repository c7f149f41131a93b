# cython: boundscheck=False, wraparound=False
"""FNV-1a, 64 bits."""

from libc.stdint cimport uint8_t, uint64_t
from libcpp.vector cimport vector


cdef extern from "hash/fnv.h" namespace "ggr" nogil:
    const uint64_t FNV_OFFSET
    cdef cppclass HashJob:
        const uint8_t *data
        size_t size
        uint64_t hash
    uint64_t c_fnv1a_64 "ggr::fnv1a_64"(const uint8_t *, size_t, uint64_t)
    uint64_t fnv1a_64_at(int, const uint8_t *, size_t, uint64_t)
    void c_fnv1a_64_many "ggr::fnv1a_64_many"(HashJob *, size_t, int)
    void fnv1a_64_interleaved(HashJob *, size_t)
    int hash_level_names(const char **, int)


cdef const uint8_t *address(const uint8_t[::1] data):
    return &data[0] if data.shape[0] > 0 else NULL


def hash_levels() -> list[str]:
    """Return the ways of hashing one buffer that this processor has, the one in use first."""
    cdef const char *names[16]
    cdef int n = hash_level_names(names, 16)
    return [names[i].decode() for i in range(n)]


def fnv1a_64(const uint8_t[::1] data, seed=None, *, level=None) -> int:
    """Return the FNV-1a-64 of the bytes, or go on from the hash of what came before them (`seed`).

    `level` is one of `hash_levels`, for tests.
    """
    cdef uint64_t state = FNV_OFFSET if seed is None else seed
    cdef size_t size = data.shape[0]
    cdef const uint8_t *bytes_ = address(data)
    cdef int number = -1 if level is None else hash_levels().index(level)
    with nogil:
        state = c_fnv1a_64(bytes_, size, state) if number < 0 else fnv1a_64_at(number, bytes_, size, state)
    return state


def fnv1a_64_many(buffers, *, int threads=1, bint interleave=False) -> list[int]:
    """Return the FNV-1a-64 of each buffer, hashed in at most so many threads.

    `interleave` takes the byte loops of several buffers in one thread, whatever is best here.
    """
    cdef vector[HashJob] jobs
    cdef HashJob job
    cdef const uint8_t[::1] view
    views = [memoryview(buffer).cast("B") for buffer in buffers]  # they hold the memory meanwhile
    for view in views:
        job.data = address(view)
        job.size = view.shape[0]
        job.hash = FNV_OFFSET
        jobs.push_back(job)
    with nogil:
        if interleave:
            fnv1a_64_interleaved(jobs.data(), jobs.size())
        else:
            c_fnv1a_64_many(jobs.data(), jobs.size(), threads)
    return [done.hash for done in jobs]
