# distutils: language = c++
"""Merge text into tokens by the tokens' scores, as SentencePiece's BPE models do.

Neighbours whose joined text is a token wait in a queue, the best score first and of equal scores the leftmost. A merge
makes at most two new neighbours, so that n characters cost O(n log n). Entries that a merge has made stale are skipped
when they come up.
"""

from libc.stdint cimport INT32_MAX, int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy
from libcpp.pair cimport pair
from libcpp.queue cimport priority_queue
from libcpp.vector cimport vector

import os

import numpy as np

from ggml_rpc.errors import ModelError

cdef uint64_t FNV_PRIME = 0x100000001B3
cdef uint32_t SIGN = 0x80000000
cdef uint64_t LOW = 0xFFFFFFFF
cdef int32_t NO_TOKEN = -1
MAX_TEXT = 1 << 30

cdef struct Symbol:
    int32_t previous
    int32_t next
    int32_t start
    int32_t size  # bytes; 0 once it was merged into its left neighbour


cdef uint32_t ordered(float score) noexcept nogil:
    """Return an integer that grows with a score that is not NaN; both zeros are equal."""
    cdef float value = score + <float> 0.0
    cdef uint32_t bits = 0
    memcpy(&bits, &value, 4)
    return ~bits if bits & SIGN else bits | SIGN


cdef class ScoreMerger:
    """Hold a vocabulary and merge UTF-8 text into its tokens, the best score first."""

    cdef vector[uint8_t] _text
    cdef vector[uint64_t] _start  # one more than there are tokens
    cdef vector[uint32_t] _score
    cdef vector[int32_t] _slots  # open addressing, at most half full
    cdef int32_t _byte_ids[256]
    cdef uint64_t _mask
    cdef uint64_t _seed
    cdef uint64_t _longest

    def __init__(self, tokens, scores, byte_ids):
        cdef const float[::1] score = np.ascontiguousarray(scores, np.float32)
        cdef Py_ssize_t n = len(tokens)
        cdef bytes text
        cdef Py_ssize_t i
        cdef uint64_t slot, size = 16
        cdef const uint8_t* data
        if score.shape[0] != n or len(byte_ids) != 256 or n > INT32_MAX // 4:
            raise ModelError(f"a vocabulary of {n} tokens has {score.shape[0]} scores and {len(byte_ids)} byte tokens")
        while size < 2 * <uint64_t> n:
            size *= 2
        self._mask = size - 1
        self._seed = int.from_bytes(os.urandom(8), "little")  # no vocabulary can be made of colliding texts
        self._longest = 0
        self._slots.assign(size, NO_TOKEN)
        self._start.push_back(0)
        for i in range(256):
            self._byte_ids[i] = byte_ids[i]
            if not NO_TOKEN <= self._byte_ids[i] < n:
                raise ModelError(f"the token of byte {i} is {byte_ids[i]}, and there are {n} tokens")
        for i in range(n):
            if score[i] != score[i]:
                raise ModelError(f"the score of token {i} is not a number")
            text = tokens[i]
            data = text
            self._text.insert(self._text.end(), data, data + len(text))
            self._start.push_back(self._text.size())
            self._score.push_back(ordered(score[i]))
            self._longest = max(self._longest, <uint64_t> len(text))
            slot = self._hash(data, len(text))
            while self._slots[slot] != NO_TOKEN:
                if self._is(self._slots[slot], data, len(text)):
                    raise ModelError(f"tokens {self._slots[slot]} and {i} have the same text")
                slot = (slot + 1) & self._mask
            self._slots[slot] = <int32_t> i

    cdef uint64_t _hash(self, const uint8_t* data, uint64_t size) noexcept nogil:
        cdef uint64_t value = self._seed, i
        for i in range(size):
            value = (value ^ data[i]) * FNV_PRIME
        return (value ^ (value >> 32)) & self._mask

    cdef bint _is(self, int32_t token, const uint8_t* data, uint64_t size) noexcept nogil:
        cdef uint64_t start = self._start[token]
        return self._start[token + 1] - start == size and memcmp(self._text.data() + start, data, size) == 0

    cdef int32_t _find(self, const uint8_t* data, uint64_t size) noexcept nogil:
        cdef uint64_t slot
        if size > self._longest:
            return NO_TOKEN
        slot = self._hash(data, size)
        while self._slots[slot] != NO_TOKEN and not self._is(self._slots[slot], data, size):
            slot = (slot + 1) & self._mask
        return self._slots[slot]

    cdef void _propose(self, const uint8_t* data, const vector[Symbol]& symbols, int32_t left, int32_t right,
                       priority_queue[pair[uint64_t, uint64_t]]& queue) noexcept nogil:
        """Queue two neighbours if their joined text is a token."""
        cdef uint64_t size
        cdef int32_t token
        cdef pair[uint64_t, uint64_t] entry
        if left < 0 or right < 0:
            return
        size = <uint64_t> symbols[left].size + <uint64_t> symbols[right].size
        token = self._find(data + symbols[left].start, size)
        if token != NO_TOKEN:
            entry.first = (<uint64_t> self._score[token] << 32) | (LOW - <uint64_t> left)
            entry.second = (<uint64_t> right << 32) | size
            queue.push(entry)

    cdef int _merge(self, const uint8_t* data, int32_t size, vector[int32_t]& out) noexcept nogil:
        """Append the tokens of a text; return the first byte that has none, or -1."""
        cdef vector[Symbol] symbols
        cdef priority_queue[pair[uint64_t, uint64_t]] queue
        cdef pair[uint64_t, uint64_t] entry
        cdef Symbol symbol
        cdef int32_t at = 0, left, right, length, token, count, i
        while at < size:
            length = 1
            # A character's first byte says its length; what follows a wrong one is cut off at the end.
            if data[at] >= 0xC0:
                length = 2 if data[at] < 0xE0 else (3 if data[at] < 0xF0 else 4)
            symbol.previous = <int32_t> symbols.size() - 1
            symbol.next = <int32_t> symbols.size() + 1
            symbol.start = at
            symbol.size = min(length, size - at)
            symbols.push_back(symbol)
            at += symbol.size
        count = <int32_t> symbols.size()
        if count:
            symbols[count - 1].next = -1
        for i in range(1, count):
            self._propose(data, symbols, i - 1, i, queue)
        while not queue.empty():
            entry = queue.top()
            queue.pop()
            left = <int32_t> (LOW - (entry.first & LOW))
            right = <int32_t> (entry.second >> 32)
            length = <int32_t> (entry.second & LOW)
            if not symbols[left].size or not symbols[right].size or symbols[left].size + symbols[right].size != length:
                continue
            symbols[left].size = length
            symbols[right].size = 0
            symbols[left].next = symbols[right].next
            if symbols[left].next >= 0:
                symbols[symbols[left].next].previous = left
            self._propose(data, symbols, symbols[left].previous, left, queue)
            self._propose(data, symbols, left, symbols[left].next, queue)
        i = 0 if count else -1
        while i >= 0:
            symbol = symbols[i]
            token = self._find(data + symbol.start, symbol.size)
            if token != NO_TOKEN:
                out.push_back(token)
            else:
                for at in range(symbol.start, symbol.start + symbol.size):
                    if self._byte_ids[data[at]] == NO_TOKEN:
                        return data[at]
                    out.push_back(self._byte_ids[data[at]])
            i = symbol.next
        return -1

    def encode(self, bytes text not None):
        """Return the token ids of UTF-8 text."""
        cdef vector[int32_t] out
        cdef const uint8_t* data = text
        cdef int32_t size
        cdef int missing
        if len(text) > MAX_TEXT:
            raise ModelError(f"a text of {len(text)} bytes is too long to be split into tokens")
        size = <int32_t> len(text)
        with nogil:
            missing = self._merge(data, size, out)
        if missing >= 0:
            raise ModelError(f"the vocabulary has no token for the byte 0x{missing:02X} of the text")
        return out
