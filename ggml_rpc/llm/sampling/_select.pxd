from libc.stdint cimport int32_t, uint64_t
from libcpp.vector cimport vector


cdef enum State:
    GOOD = 0
    HAS_NAN = 1
    HAS_INF = 2
    ALL_BANNED = 3


cdef struct Mass:
    double total
    double moment


cdef uint64_t key_of(float logit, int32_t token) noexcept nogil
cdef float logit_of(uint64_t key) noexcept nogil
cdef int32_t token_of(uint64_t key) noexcept nogil
cdef void keep_best(vector[uint64_t] &keys, size_t k) noexcept nogil
cdef State scan(const float *row, size_t n, vector[float] &maxima, float *top) noexcept nogil
cdef void gather(const float *row, size_t n, vector[float] &maxima, float least, vector[uint64_t] &keys) noexcept nogil
cdef void best(const float *row, size_t n, size_t k, vector[float] &maxima, vector[float] &spare,
               vector[uint64_t] &keys) noexcept nogil
cdef void exponentials(const float *x, float top, float scale, float *power, float *weight) noexcept nogil
cdef Mass mass(const float *row, size_t n, float top, float scale, vector[double] *blocks) noexcept nogil
cdef void block_of(const float *row, size_t n, size_t at, float top, float scale, float *power,
                   float *weight) noexcept nogil
cdef size_t draw(const float *row, size_t n, float top, float scale, double share,
                 vector[double] &blocks) noexcept nogil
cdef size_t find_bad(State state, const float *row, size_t n) noexcept nogil
cdef raise_bad(State state, size_t token)
