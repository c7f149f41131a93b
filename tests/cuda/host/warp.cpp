// What the threads of a warp compute together, from what each handed in (see ggr_exchange). Fragments lie as the PTX
// ISA has them for mma.m16n8k32 (bytes) and m16n8k16 (halves): with g = lane / 4 and t = lane % 4,
//   A: words 0 to 3 hold rows g, g + 8, g, g + 8; the first two the columns from t words on, the others half a row
//   later; B: words 0 and 1 hold column g, rows from t words on and half a column later; C: numbers 0 and 1 are row g,
//   columns 2 t and 2 t + 1, numbers 2 and 3 the same of row g + 8.
#define GGR_CUDA_HOST
#include "cuda/kernels/base.cuh"

namespace ggr {
namespace cuda {
namespace emulator {

void compute_ballot(const void* const* in, void* const* out) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(*static_cast<const bool*>(in[i])) << i;
    for (int i = 0; i < 32; ++i) *static_cast<uint32_t*>(out[i]) = bits;
}

// Sum: of an element of the result. value(word, i): number i of a word.
template <class T, int PER_WORD, class Value>
static void product(const void* const* in, void* const* out, Value value) {
    constexpr int K = 8 * PER_WORD;
    using Number = decltype(value(0u, 0));
    Number a[16][K], b[K][8];
    for (int lane = 0; lane < 32; ++lane) {
        const Fragments<T>& from = *static_cast<const Fragments<T>*>(in[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < PER_WORD; ++i) {
            for (int word = 0; word < 4; ++word) {
                a[g + word % 2 * 8][word / 2 * K / 2 + t * PER_WORD + i] = value(from.a[word], i);
            }
            for (int word = 0; word < 2; ++word) b[word * K / 2 + t * PER_WORD + i][g] = value(from.b[word], i);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        const Fragments<T>& from = *static_cast<const Fragments<T>*>(in[lane]);
        T* to = static_cast<T*>(out[lane]);
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            T sum = from.d[i];
            for (int k = 0; k < K; ++k) sum += static_cast<T>(a[row][k] * b[k][column]);
            to[i] = sum;
        }
    }
}
void compute_mma_s8(const void* const* in, void* const* out) {
    product<int32_t, 4>(in, out,
                        [](uint32_t word, int i) { return static_cast<int>(static_cast<int8_t>(word >> 8 * i)); });
}
void compute_mma_f16(const void* const* in, void* const* out) {
    product<float, 2>(in, out,
                      [](uint32_t word, int i) { return half_to_float(static_cast<uint16_t>(word >> 16 * i)); });
}
void compute_mma_bf16(const void* const* in, void* const* out) {
    product<float, 2>(in, out,
                      [](uint32_t word, int i) { return bf16_to_float(static_cast<uint16_t>(word >> 16 * i)); });
}

// Lane i holds, of matrix m, columns 2 (i % 4) and the next of row i / 4 (rows and columns exchanged if transposed).
static void load(const void* const* in, void* const* out, bool transposed) {
    for (int lane = 0; lane < 32; ++lane) {
        for (int m = 0; m < 4; ++m) {
            uint32_t word = 0;
            for (int i = 0; i < 2; ++i) {
                const int along = lane % 4 * 2 + i, across = lane / 4;
                const int row = transposed ? along : across, column = transposed ? across : along;
                const uint16_t h = static_cast<const uint16_t*>(in[m * 8 + row])[column];
                word |= static_cast<uint32_t>(h) << 16 * i;
            }
            static_cast<uint32_t*>(out[lane])[m] = word;
        }
    }
}
void compute_load_matrices(const void* const* in, void* const* out) { load(in, out, false); }
void compute_load_matrices_transposed(const void* const* in, void* const* out) { load(in, out, true); }

}  // namespace emulator
}  // namespace cuda
}  // namespace ggr
