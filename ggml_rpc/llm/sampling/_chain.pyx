# cython: boundscheck=False, wraparound=False, cdivision=True
"""The sampler chain over one row of logits, or over the best of them.

The order is llama-cli's: bias, penalties, top-k, typical, top-p, min-p, temperature, draw. Survivors are keys
(`_select`), best first, so the chain's result depends on the set of candidates alone and not on the way they came.
"""

import numpy as np

from ggml_rpc.errors import ComputeError

from libc.math cimport INFINITY, exp, fabs, isnan, log
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libcpp.vector cimport vector

from ._select cimport (
    ALL_BANNED, GOOD, HAS_INF, HAS_NAN, Mass, State, best, draw, find_bad, gather, keep_best, key_of, logit_of, mass,
    raise_bad, scan, token_of,
)

cdef enum:
    # How many candidates are sorted first where their number is not known; then eight times as many.
    FIRST_SORTED = 64
    # Marks in `seen`.
    CAME = 1
    CHANGED = 2


cdef class Chain:
    """Reduce logits to survivors with probabilities, and draw one.

    Parameters
    ----------
    n_vocab : int
        Length of a row.
    temperature, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty, presence_penalty
        As in `SamplingParams`, checked there.
    """

    cdef size_t n_vocab
    cdef double temperature, top_p, typical_p
    cdef size_t top_k
    cdef float min_p, repeat, frequency, presence
    cdef float scale

    cdef vector[int32_t] changed, counts
    cdef vector[float] biases
    cdef vector[uint8_t] seen
    cdef vector[float] own, maxima, spare, logits, scores, score_maxima
    cdef vector[uint64_t] keys, ranked
    cdef vector[double] weights, blocks
    cdef float top
    # All tokens survive: `own` holds their logits, and there are no keys.
    cdef bint whole

    def __init__(self, size_t n_vocab, *, double temperature, size_t top_k, double top_p, double min_p,
                 double typical_p, double repeat_penalty, double frequency_penalty, double presence_penalty):
        self.n_vocab = n_vocab
        self.temperature = temperature
        self.top_p = top_p
        self.min_p = <float> min_p
        self.typical_p = typical_p
        self.repeat = <float> repeat_penalty
        self.frequency = <float> frequency_penalty
        self.presence = <float> presence_penalty
        # The best survives all but `typical`: greedy needs nothing else.
        self.top_k = 1 if temperature <= 0 and typical_p >= 1 else top_k
        self.scale = <float> min(max(1 / temperature, 1e-30), 1e30) if temperature > 0 else 1
        self.seen.resize(n_vocab, 0)

    def change(self, const int32_t[::1] ids, const int32_t[::1] counts, const float[::1] biases) -> None:
        """Set the tokens whose logits are changed: how often each stands in the window, and what is added to it."""
        cdef Py_ssize_t i
        self.changed.clear()
        self.counts.clear()
        self.biases.clear()
        for i in range(ids.shape[0]):
            self.changed.push_back(ids[i])
            self.counts.push_back(counts[i])
            self.biases.push_back(biases[i])

    def row(self, const float[::1] logits) -> None:
        """Run the chain up to the draw over the logits of the whole vocabulary.

        Raises
        ------
        ComputeError
            If a logit is NaN or inf, or all are -inf.
        """
        cdef const float *row = &logits[0]
        cdef State state
        cdef size_t i
        cdef int32_t token
        self.whole = False
        with nogil:
            if self.changed.size():
                self.own.assign(row, row + self.n_vocab)
                for i in range(self.changed.size()):
                    token = self.changed[i]
                    self.own[token] = self._change(i, self.own[token])
                row = self.own.data()
            state = self._run(row)
            if self.whole and not self.changed.size():
                self.own.assign(row, row + self.n_vocab)
        if state != GOOD:
            raise_bad(state, find_bad(state, row, self.n_vocab))

    def few(self, const int32_t[::1] ids, const float[::1] logits, const float[::1] changed) -> bool:
        """Run the chain over some best logits and those of the changed tokens; False if a tie leaves it open.

        Parameters
        ----------
        ids, logits : arrays, shape (k,)
            The best k of the unchanged row, in any order.
        changed : array, shape (n,)
            Unchanged logits of the tokens given to `change`, in that order.

        Raises
        ------
        ComputeError
            If a logit is NaN or inf, all are -inf, or an id is out of range or comes twice.
        """
        cdef Py_ssize_t i, n = ids.shape[0]
        cdef size_t j
        cdef float least = INFINITY
        cdef int32_t token = 0
        cdef State state = GOOD
        cdef bint twice = False
        self.keys.clear()
        for j in range(self.changed.size()):
            self.seen[self.changed[j]] = CHANGED
        for i in range(n):
            token = ids[i]
            if token < 0 or <size_t> token >= self.n_vocab:
                raise ComputeError(f"a device names token {token} among the best of {self.n_vocab}")
        for i in range(n):
            token = ids[i]
            least = logits[i] if logits[i] < least else least
            if self.seen[token] == 0:
                self.seen[token] = CAME
                state = self._add(token, logits[i])
                if state != GOOD:
                    break
            elif self.seen[token] == CAME:
                twice = True
                break
        for j in range(self.changed.size()):
            self.seen[self.changed[j]] = 0
        for i in range(n):
            self.seen[ids[i]] = 0
        if twice:
            raise ComputeError(f"a device names token {token} twice among the best")
        for j in range(self.changed.size()):
            if state == GOOD:
                token = self.changed[j]
                state = self._add(token, self._change(j, changed[j]))
        if state == GOOD and self.keys.size() == 0:
            state = ALL_BANNED
        if state != GOOD:
            raise_bad(state, token)
        keep_best(self.keys, self.top_k)
        # Tokens that did not come have logits up to `least`. One of them that equals the last kept may be ahead of it.
        if <size_t> n < self.n_vocab and least > -INFINITY and (
            self.keys.size() < self.top_k or logit_of(self.keys.back()) <= least
        ):
            return False
        self._filter()
        return True

    def token(self, double share) -> int:
        """Return the survivor at which the running sum of probabilities passes `share`, 0 <= share < 1."""
        cdef double target = 0, run = 0
        cdef size_t i
        if self.whole:
            return draw(self.own.data(), self.n_vocab, self.top, self.scale, share, self.blocks)
        for i in range(self.weights.size()):
            target += self.weights[i]
        target *= share
        for i in range(self.weights.size()):
            run += self.weights[i]
            if run > target:
                return token_of(self.keys[i])
        return token_of(self.keys[0])

    def survivors(self) -> tuple:
        """Return the ids and probabilities (float64) of the survivors."""
        cdef size_t i, n = self.n_vocab if self.whole else self.keys.size()
        ids = np.empty(n, np.int32)
        probabilities = np.empty(n, np.float64)
        cdef int32_t[::1] to_ids = ids
        cdef double[::1] to = probabilities
        cdef double total = 0
        for i in range(n):
            to_ids[i] = <int32_t> i if self.whole else token_of(self.keys[i])
            to[i] = exp(<double> self.scale * (self.own[i] - self.top)) if self.whole else self.weights[i]
            total += to[i]
        for i in range(n):
            to[i] /= total
        return ids, probabilities

    cdef State _add(self, int32_t token, float logit) noexcept nogil:
        if isnan(logit):
            return HAS_NAN
        if logit == INFINITY:
            return HAS_INF
        if logit > -INFINITY:
            self.keys.push_back(key_of(logit, token))
        return GOOD

    cdef float _change(self, size_t i, float logit) noexcept nogil:
        """Return the logit of the i-th changed token with its bias and penalties, in float32 as llama.cpp."""
        logit += self.biases[i]
        if self.counts[i]:
            # Dividing a negative logit would favour the token.
            logit = logit * self.repeat if logit <= 0 else logit / self.repeat
            logit -= <float> self.counts[i] * self.frequency + self.presence
        return logit

    cdef State _run(self, const float *row) noexcept nogil:
        """Do the chain up to the draw over a whole row."""
        cdef State state = scan(row, self.n_vocab, self.maxima, &self.top)
        if state != GOOD:
            return state
        if self.top_k:
            best(row, self.n_vocab, self.top_k, self.maxima, self.spare, self.keys)
            self._filter()
        elif self.typical_p < 1:
            self.keys.clear()
            self._typical(row, self.n_vocab)
            self._filter_sorted()
        elif self.top_p < 1:
            self._nucleus(row)
            self._finish()
        elif self.min_p > 0:
            gather(row, self.n_vocab, self.maxima, self._least(), self.keys)
            keep_best(self.keys, self.keys.size())
            self._finish()
        else:
            self.whole = True
        return GOOD

    cdef void _filter(self) noexcept nogil:
        """Do what follows top-k."""
        cdef size_t i
        self.top = logit_of(self.keys[0])
        if self.typical_p < 1:
            self.logits.resize(self.keys.size())
            for i in range(self.keys.size()):
                self.logits[i] = logit_of(self.keys[i])
            self._typical(self.logits.data(), self.logits.size())
        self._filter_sorted()

    cdef void _filter_sorted(self) noexcept nogil:
        """Do what follows typical."""
        cdef size_t i
        cdef double total = 0
        self.top = logit_of(self.keys[0])
        if self.top_p < 1:
            for i in range(self.keys.size()):
                total += exp(<double> logit_of(self.keys[i]) - self.top)
            self._cut_at_top_p(total)
        self._finish()

    cdef void _finish(self) noexcept nogil:
        """Do min-p and the temperature."""
        cdef float least = self._least()
        cdef size_t i, n = self.keys.size()
        while n > 1 and logit_of(self.keys[n - 1]) < least:
            n -= 1
        if self.temperature <= 0:
            n = 1
        self.keys.resize(n)
        self.weights.resize(n)
        for i in range(n):
            self.weights[i] = exp((<double> logit_of(self.keys[i]) - self.top) * self.scale)

    cdef float _least(self) noexcept nogil:
        """Return the least logit that min-p keeps; rounded to float32 where llama.cpp does."""
        return self.top + <float> log(<double> self.min_p) if self.min_p > 0 else -INFINITY

    cdef bint _cut_at_top_p(self, double total) noexcept nogil:
        """Keep the fewest best candidates that hold top-p of `total`; False if all together do not."""
        cdef double run = 0
        cdef size_t i
        for i in range(self.keys.size()):
            run += exp(<double> logit_of(self.keys[i]) - self.top)
            if run >= self.top_p * total:
                self.keys.resize(i + 1)
                return True
        return False

    cdef void _nucleus(self, const float *row) noexcept nogil:
        """Do top-p over a whole row, sorting no more of it than survives, or than min-p will keep."""
        cdef double total = mass(row, self.n_vocab, self.top, 1, NULL).total
        cdef float least = self._least()
        cdef size_t k = FIRST_SORTED
        while True:
            best(row, self.n_vocab, k, self.maxima, self.spare, self.keys)
            if self._cut_at_top_p(total) or self.keys.size() < k or logit_of(self.keys.back()) < least:
                return
            k *= 8

    cdef void _typical(self, const float *row, size_t n) noexcept nogil:
        """Keep the fewest candidates that hold typical-p, those whose surprise is nearest to its mean first.

        With t = logit - top, a candidate's surprise is log(total) - t and the mean of it log(total) - mean(t): they
        differ by t - mean(t).

        `row` holds the logits of `keys`, or of the whole vocabulary where there are no keys.
        """
        cdef Mass sums = mass(row, n, self.top, 1, NULL)
        cdef double mean = sums.moment / sums.total, run = 0
        cdef size_t i, at, k = FIRST_SORTED
        cdef float high = 0
        cdef bint enough = False
        self.scores.resize(n)
        for i in range(n):
            self.scores[i] = <float> -fabs(<double> row[i] - self.top - mean)
        scan(self.scores.data(), n, self.score_maxima, &high)
        while not enough:
            best(self.scores.data(), n, k, self.score_maxima, self.spare, self.ranked)
            enough = self.ranked.size() < k
            run = 0
            for i in range(self.ranked.size()):
                run += exp(<double> row[token_of(self.ranked[i])] - self.top)
                if run > self.typical_p * sums.total:
                    self.ranked.resize(i + 1)
                    enough = True
                    break
            k *= 8
        for i in range(self.ranked.size()):
            at = token_of(self.ranked[i])
            self.ranked[i] = key_of(row[at], token_of(self.keys[at]) if self.keys.size() else <int32_t> at)
        self.keys.swap(self.ranked)
        keep_best(self.keys, self.keys.size())
