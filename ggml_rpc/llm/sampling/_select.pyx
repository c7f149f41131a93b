# cython: boundscheck=False, wraparound=False, cdivision=True
"""The best logits of a row without sorting it, and sums of exponentials.

A candidate is one 64-bit key, smaller for better: the inverted logit above the inverted token id. So candidates compare
as integers, and among equal logits the highest id is the best, which is what ggml's ARGMAX answers.

Loops over lanes have constant bounds: compilers turn them into vector code without being allowed to reorder sums.
"""

import numpy as np

from ggml_rpc.errors import ComputeError

from libc.math cimport INFINITY, isnan, log
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.algorithm cimport nth_element, sort
from libcpp.vector cimport vector

cdef enum:
    LANES = 16
    BLOCK = 128


cdef uint64_t key_of(float logit, int32_t token) noexcept nogil:
    cdef uint32_t bits = 0
    logit = logit + <float> 0.0  # -0 becomes 0: both are one value
    memcpy(&bits, &logit, 4)
    # Ascending as an unsigned number, then inverted.
    bits = bits if bits >> 31 else ~bits & <uint32_t> 0x7FFFFFFF
    return <uint64_t> bits << 32 | ~(<uint32_t> token)


cdef float logit_of(uint64_t key) noexcept nogil:
    cdef uint32_t bits = <uint32_t> (key >> 32)
    cdef float logit = 0
    bits = bits if bits >> 31 else ~bits & <uint32_t> 0x7FFFFFFF
    memcpy(&logit, &bits, 4)
    return logit


cdef int32_t token_of(uint64_t key) noexcept nogil:
    return <int32_t> ~(<uint32_t> key)


cdef void keep_best(vector[uint64_t] &keys, size_t k) noexcept nogil:
    """Leave the `k` best keys, best first."""
    if k < keys.size():
        nth_element(keys.begin(), keys.begin() + k, keys.end())
        keys.resize(k)
    sort(keys.begin(), keys.end())


cdef State scan(const float *row, size_t n, vector[float] &maxima, float *top) noexcept nogil:
    """Find the maximum of each block of the row and of the whole; refuse what is no distribution."""
    cdef float lane[LANES]
    cdef int32_t odd[LANES]
    cdef size_t blocks = n // BLOCK, b
    cdef int i, j
    cdef float high
    cdef const float *x = row
    maxima.resize((n + BLOCK - 1) // BLOCK)
    top[0] = -INFINITY
    for j in range(LANES):
        odd[j] = 0
    for b in range(blocks):
        for j in range(LANES):
            lane[j] = x[j]
        for i in range(BLOCK // LANES):
            for j in range(LANES):
                lane[j] = x[i * LANES + j] if x[i * LANES + j] > lane[j] else lane[j]
                odd[j] |= x[i * LANES + j] != x[i * LANES + j]
        for j in range(LANES // 2):
            lane[j] = lane[j + LANES // 2] if lane[j + LANES // 2] > lane[j] else lane[j]
        for j in range(LANES // 4):
            lane[j] = lane[j + LANES // 4] if lane[j + LANES // 4] > lane[j] else lane[j]
        high = lane[0]
        for j in range(1, LANES // 4):
            high = lane[j] if lane[j] > high else high
        maxima[b] = high
        top[0] = high if high > top[0] else top[0]
        x += BLOCK
    for j in range(1, LANES):
        odd[0] |= odd[j]
    if blocks * BLOCK < n:
        high = -INFINITY
        for i in range(<int> (n - blocks * BLOCK)):
            high = x[i] if x[i] > high else high
            odd[0] |= x[i] != x[i]
        maxima[blocks] = high
        top[0] = high if high > top[0] else top[0]
    if odd[0]:
        return HAS_NAN
    if top[0] == INFINITY:
        return HAS_INF
    return ALL_BANNED if top[0] == -INFINITY else GOOD


cdef void gather(const float *row, size_t n, vector[float] &maxima, float least,
                 vector[uint64_t] &keys) noexcept nogil:
    """Collect, in no order, the keys of all logits from `least` on except those of minus infinity."""
    cdef size_t b, i
    keys.clear()
    for b in range(maxima.size()):
        if maxima[b] >= least:
            for i in range(b * BLOCK, min(n, (b + 1) * BLOCK)):
                if row[i] >= least and row[i] > -INFINITY:
                    keys.push_back(key_of(row[i], <int32_t> i))


cdef void best(const float *row, size_t n, size_t k, vector[float] &maxima, vector[float] &spare,
               vector[uint64_t] &keys) noexcept nogil:
    """Collect the keys of the `k` best logits, best first; `maxima` comes from `scan`.

    Each of the k best blocks holds a logit that is not below the k-th best of the blocks' maxima: all of the k best
    logits are found from there on.
    """
    cdef float least = -INFINITY
    cdef size_t blocks = maxima.size()
    if k <= blocks:
        spare.assign(maxima.begin(), maxima.end())
        nth_element(spare.begin(), spare.begin() + (blocks - k), spare.end())
        least = spare[blocks - k]
    gather(row, n, maxima, least, keys)
    keep_best(keys, k)


cdef void exponentials(const float *x, float top, float scale, float *power, float *weight) noexcept nogil:
    """Write t = (x - top) * scale, bounded below, and exp(t) of a block.

    The exponential is 2**m * exp(f), |f| <= ln(2) / 2, by eight terms: relative error 1e-7. From t = -87.7 down
    2**m is 0.
    """
    # Copies on the stack: compilers know that they do not overlap.
    cdef float t[BLOCK]
    cdef float w[BLOCK]
    cdef float scaled[BLOCK]
    cdef int32_t bits[BLOCK]
    cdef float m, f
    cdef int j
    memcpy(t, x, sizeof(t))
    for j in range(BLOCK):
        t[j] = (t[j] - top) * scale
        t[j] = t[j] if t[j] > <float> -88.0 else <float> -88.0
    for j in range(BLOCK):
        # Adding 1.5 * 2**23 rounds to an integer.
        m = (t[j] * <float> 1.44269504 + <float> 12582912.0) - <float> 12582912.0
        f = (t[j] - m * <float> 0.693359375) - m * <float> -2.12194440e-4
        bits[j] = (<int32_t> m + 127) << 23
        w[j] = <float> 1.0 + f * (<float> 1.0 + f * (<float> 0.5 + f * (
            <float> (1.0 / 6) + f * (<float> (1.0 / 24) + f * (
                <float> (1.0 / 120) + f * (<float> (1.0 / 720) + f * <float> (1.0 / 5040)))))))
    memcpy(scaled, bits, sizeof(scaled))
    for j in range(BLOCK):
        w[j] = w[j] * scaled[j]
    memcpy(power, t, sizeof(t))
    memcpy(weight, w, sizeof(w))


cdef Mass mass(const float *row, size_t n, float top, float scale, vector[double] *blocks) noexcept nogil:
    """Sum w = exp((x - top) * scale) and w * log(w) over a row, and keep the sum of w of each block if wanted."""
    cdef float power[BLOCK]
    cdef float weight[BLOCK]
    cdef float sums[LANES]
    cdef float moments[LANES]
    cdef Mass out
    cdef double of_block
    cdef size_t b
    cdef int i, j
    out.total = 0
    out.moment = 0
    if blocks != NULL:
        blocks.clear()
    for b in range((n + BLOCK - 1) // BLOCK):
        block_of(row, n, b * BLOCK, top, scale, power, weight)
        for j in range(LANES):
            sums[j] = 0
            moments[j] = 0
        for i in range(BLOCK // LANES):
            for j in range(LANES):
                sums[j] += weight[i * LANES + j]
                moments[j] += weight[i * LANES + j] * power[i * LANES + j]
        of_block = 0
        for j in range(LANES):
            of_block += sums[j]
            out.moment += moments[j]
        out.total += of_block
        if blocks != NULL:
            blocks.push_back(of_block)
    return out


cdef void block_of(const float *row, size_t n, size_t at, float top, float scale, float *power,
                   float *weight) noexcept nogil:
    """Do `exponentials` for the block that begins at `at`; beyond the row's end they are 0."""
    cdef float tail[BLOCK]
    cdef int j
    if at + BLOCK <= n:
        exponentials(row + at, top, scale, power, weight)
    else:
        for j in range(BLOCK):
            tail[j] = row[at + j] if at + j < n else -INFINITY
        exponentials(tail, top, scale, power, weight)


cdef size_t draw(const float *row, size_t n, float top, float scale, double share,
                 vector[double] &blocks) noexcept nogil:
    """Return the token at which the running sum of exp((x - top) * scale) passes `share` (0 to 1) of the whole."""
    cdef float power[BLOCK]
    cdef float weight[BLOCK]
    cdef double total = mass(row, n, top, scale, &blocks).total
    # Strictly below the sum that the walk over the blocks ends with, whatever rounding does.
    cdef double target = min(total * share, total * (1 - 2.0 ** -52))
    cdef size_t b, last = 0
    cdef double run = 0
    cdef int j
    for b in range(blocks.size()):
        if run + blocks[b] > target:
            block_of(row, n, b * BLOCK, top, scale, power, weight)
            for j in range(BLOCK):
                run += weight[j]
                if weight[j] > 0:
                    last = b * BLOCK + j
                    if run > target:
                        return last
        else:
            run += blocks[b]
    # Within a block the running sum may round to less than the block's own sum.
    return last


cdef size_t find_bad(State state, const float *row, size_t n) noexcept nogil:
    """Return the first token whose logit is what `state` says; 0 if there is none."""
    cdef size_t i
    for i in range(n):
        if isnan(row[i]) if state == HAS_NAN else row[i] == INFINITY:
            return i
    return 0


cdef raise_bad(State state, size_t token):
    """Raise the error of a row that is no distribution."""
    if state == ALL_BANNED:
        raise ComputeError("every logit is -inf: no token is left to choose from")
    what = "NaN" if state == HAS_NAN else "inf"
    raise ComputeError(f"the logit of token {token} is {what}: the model's weights or a device's results are broken")


def top_k(const float[::1] row, int k):
    """Return the `k` best logits of a row, best first.

    Parameters
    ----------
    row : numpy.ndarray of float32, shape (n_vocab,)
        Logits; -inf marks a token that cannot be chosen.
    k : int
        At least 1; not more than there are finite logits come back.

    Returns
    -------
    ids : numpy.ndarray of int32
        Token ids. Among equal logits the highest id comes first.
    logits : numpy.ndarray of float32
        Their logits.

    Raises
    ------
    ComputeError
        If a logit is NaN or inf, or all are -inf.
    """
    cdef vector[float] maxima, spare
    cdef vector[uint64_t] keys
    cdef State state = ALL_BANNED
    cdef float top = 0
    cdef size_t n = row.shape[0], i
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if n:
        with nogil:
            state = scan(&row[0], n, maxima, &top)
            if state == GOOD:
                best(&row[0], n, k, maxima, spare, keys)
    if state != GOOD:
        raise_bad(state, find_bad(state, &row[0], n) if n else 0)
    ids = np.empty(keys.size(), np.int32)
    logits = np.empty(keys.size(), np.float32)
    cdef int32_t[::1] to_ids = ids
    cdef float[::1] to_logits = logits
    for i in range(keys.size()):
        to_ids[i] = token_of(keys[i])
        to_logits[i] = logit_of(keys[i])
    return ids, logits


def log_sum_exp(const float[:, ::1] rows):
    """Return the logarithm of the sum of exponentials of each row.

    Parameters
    ----------
    rows : numpy.ndarray of float32, shape (n, n_vocab)
        Logits.

    Returns
    -------
    numpy.ndarray of float64, shape (n,)
        Exact to about 1e-6.

    Raises
    ------
    ComputeError
        If a logit is NaN or inf, or all of a row are -inf.
    """
    cdef vector[float] maxima
    cdef State state = ALL_BANNED if rows.shape[1] == 0 else GOOD
    cdef float top = 0
    cdef size_t n = rows.shape[1]
    cdef Py_ssize_t i = 0
    out = np.empty(rows.shape[0])
    cdef double[::1] to = out
    with nogil:
        while i < rows.shape[0] and state == GOOD:
            state = scan(&rows[i, 0], n, maxima, &top)
            if state == GOOD:
                to[i] = top + log(mass(&rows[i, 0], n, top, 1, NULL).total)
                i += 1
    if i < rows.shape[0]:
        raise_bad(state, find_bad(state, &rows[i, 0], n) if n else 0)
    return out
