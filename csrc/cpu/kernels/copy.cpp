// DUP, CONT, CPY: the elements of src[0] in logical order into the result, whatever the layouts and shapes of the two.
// Same type (plain types and quantised blocks), F32/F16/BF16 into each other, F32 <-> I32, float -> quantised,
// quantised -> F32, F16, BF16. Floor: bytes read and written over memory bandwidth.
#include "cpu/layout.h"
#include "cpu/level.h"
#include "cpu/quants/dequant.h"
#include "cpu/quants/quant.h"

GGR_KERNELS_BEGIN

namespace {

constexpr int64_t CHUNK = 4096;  // elements of a work item; a multiple of every block
constexpr int64_t STAGE = 1024;  // elements converted at a time through a buffer on the stack
constexpr int64_t TILE = 64;     // side of a transposition's tile: 16 KiB of f32

inline int64_t chunk_count(int64_t n, int64_t size) { return (n + size - 1) / size; }

// One plain unit of N bytes.
template <int N>
struct Bytes {
    uint8_t b[N];
};

// Conversions of one element, and of a packed run.
struct F32toI32 {
    using From = float;
    using To = int32_t;
    static inline int32_t one(float x) { return truncate_to_int(vset(x))[0]; }
    static inline void run(const float* x, int32_t* y, int64_t n) {
        for (int64_t i = 0; i < n; ++i) y[i] = one(x[i]);
    }
};
struct I32toF32 {
    using From = int32_t;
    using To = float;
    static inline float one(int32_t x) { return (float)x; }
    static inline void run(const int32_t* x, float* y, int64_t n) {
        for (int64_t i = 0; i < n; ++i) y[i] = (float)x[i];
    }
};
template <int N>
struct Same {
    using From = Bytes<N>;
    using To = Bytes<N>;
    static inline Bytes<N> one(Bytes<N> x) { return x; }
    static inline void run(const Bytes<N>* x, Bytes<N>* y, int64_t n) { std::memmove(y, x, (size_t)n * N); }
};
struct AsF32 {
    using Element = float;
    static inline float get(float x) { return x; }
    static inline float put(float x) { return x; }
    static inline vf load(const float* p) { return vload(p); }
    static inline void store(float* p, vf v) { vstore(p, v); }
};
struct AsF16 {
    using Element = uint16_t;
    static inline float get(uint16_t x) { return f16_to_f32(x); }
    static inline uint16_t put(float x) { return f32_to_f16(x); }
    static inline vf load(const uint16_t* p) { return vload_f16(p); }
    static inline void store(uint16_t* p, vf v) { vstore_f16(p, v); }
};
struct AsBF16 {
    using Element = uint16_t;
    static inline float get(uint16_t x) { return bf16_to_f32(x); }
    static inline uint16_t put(float x) { return f32_to_bf16(x); }
    static inline vf load(const uint16_t* p) { return vload_bf16(p); }
    static inline void store(uint16_t* p, vf v) { vstore_bf16(p, v); }
};
template <class S, class D>
struct Convert {
    using From = typename S::Element;
    using To = typename D::Element;
    static inline To one(From x) { return D::put(S::get(x)); }
    static inline void run(const From* x, To* y, int64_t n) {
        int64_t i = 0;
        for (; i + VL <= n; i += VL) D::store(y + i, S::load(x + i));
        for (; i < n; ++i) y[i] = one(x[i]);
    }
};

template <class C>
void convert_run(const uint8_t* x, int64_t x_stride, uint8_t* y, int64_t y_stride, int64_t n) {
    using From = typename C::From;
    using To = typename C::To;
    if (x_stride == sizeof(From) && y_stride == sizeof(To)) {
        C::run(reinterpret_cast<const From*>(x), reinterpret_cast<To*>(y), n);
        return;
    }
    for (int64_t i = 0; i < n; ++i)
        *reinterpret_cast<To*>(y + i * y_stride) = C::one(*reinterpret_cast<const From*>(x + i * x_stride));
}

// Items are CHUNK units in logical order.
template <class C>
bool run_plain(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &src = *step.src[0], &dst = *step.dst;
    int64_t left = least(end * CHUNK, n_elements(src) / block_size(src.type)) - begin * CHUNK;
    Cursor from(src, begin * CHUNK), to(dst, begin * CHUNK);
    while (left > 0) {
        const int64_t n = least(left, least(from.room(), to.room()));
        convert_run<C>(from.p, from.stride(), to.p, to.stride(), n);
        from.advance(n);
        to.advance(n);
        left -= n;
    }
    return true;
}

// Elements whose neighbours lie along dimension 0 in dst and along dimension 1 in src (or, with arg.i64[0] set, the
// other way round), shapes equal: copied in square tiles, so that both sides move several lines of a page at a time.
// Items are tiles.
template <class C>
bool run_transposed(const Step& step, int64_t begin, int64_t end, Worker&) {
    using From = typename C::From;
    using To = typename C::To;
    const Tensor &src = *step.src[0], &dst = *step.dst;
    const int x = step.arg.i64[0] != 0 ? 1 : 0, y = 1 - x;  // dst is packed along dimension x, src along y
    const int64_t across = chunk_count(dst.ne[x], TILE), down = chunk_count(dst.ne[y], TILE);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t x0 = item % across * TILE, y0 = item / across % down * TILE;
        const int64_t i2 = item / (across * down) % dst.ne[2], i3 = item / (across * down) / dst.ne[2];
        const int64_t columns = least(TILE, dst.ne[x] - x0), rows = least(TILE, dst.ne[y] - y0);
        const uint8_t* from = src.data + x0 * src.nb[x] + y0 * src.nb[y] + i2 * src.nb[2] + i3 * src.nb[3];
        uint8_t* to = dst.data + x0 * dst.nb[x] + y0 * dst.nb[y] + i2 * dst.nb[2] + i3 * dst.nb[3];
        To tile[TILE][TILE + 64 / sizeof(To)];  // a line more, so that a column does not fall into few cache sets
        for (int64_t c = 0; c < columns; ++c) {
            const From* line = reinterpret_cast<const From*>(from + c * src.nb[x]);
            for (int64_t r = 0; r < rows; ++r) tile[r][c] = C::one(line[r]);
        }
        for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * dst.nb[y], tile[r], (size_t)columns * sizeof(To));
    }
    return true;
}

// Same quantised type: blocks are moved as they are. arg.i64[0]: bytes of a block.
bool run_blocks(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &src = *step.src[0], &dst = *step.dst;
    const int64_t bytes = step.arg.i64[0];
    int64_t left = least(end * CHUNK, n_elements(src) / block_size(src.type)) - begin * CHUNK;
    Cursor from(src, begin * CHUNK), to(dst, begin * CHUNK);
    while (left > 0) {
        const int64_t n = least(left, least(from.room(), to.room()));
        if (from.stride() == bytes && to.stride() == bytes) {
            std::memmove(to.p, from.p, (size_t)(n * bytes));
        } else {
            for (int64_t i = 0; i < n; ++i)
                std::memmove(to.p + i * to.stride(), from.p + i * from.stride(), (size_t)bytes);
        }
        from.advance(n);
        to.advance(n);
        left -= n;
    }
    return true;
}

// Move n elements of the float type's cursor to or from a buffer of f32.
template <class S>
void gather(Cursor& from, float* y, int64_t n) {
    while (n > 0) {
        const int64_t k = least(n, from.room());
        convert_run<Convert<S, AsF32>>(from.p, from.stride(), reinterpret_cast<uint8_t*>(y), 4, k);
        from.advance(k);
        y += k;
        n -= k;
    }
}
template <class D>
void scatter(const float* x, Cursor& to, int64_t n) {
    while (n > 0) {
        const int64_t k = least(n, to.room());
        convert_run<Convert<AsF32, D>>(reinterpret_cast<const uint8_t*>(x), 4, to.p, to.stride(), k);
        to.advance(k);
        x += k;
        n -= k;
    }
}

// Items are CHUNK elements; whole blocks lie in a row of the quantised side, the float side may have any shape.
template <class S>
bool run_quantize(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &src = *step.src[0], &dst = *step.dst;
    const QuantRow quantize = quant_row_for(dst.type);
    const int64_t block = block_size(dst.type), bytes = block_bytes(dst.type);
    int64_t left = (least(end * CHUNK, n_elements(src)) - begin * CHUNK) / block;
    Cursor from(src, begin * CHUNK), to(dst, begin * CHUNK / block);
    float buffer[STAGE];
    while (left > 0) {
        const int64_t n = least(left, least(to.stride() == bytes ? to.room() : 1, STAGE / block));
        gather<S>(from, buffer, n * block);
        quantize(buffer, to.p, n * block);
        to.advance(n);
        left -= n;
    }
    return true;
}
template <class D>
bool run_dequantize(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &src = *step.src[0], &dst = *step.dst;
    const DequantRow dequantize = dequant_row_for(src.type);
    const int64_t block = block_size(src.type), bytes = block_bytes(src.type);
    int64_t left = (least(end * CHUNK, n_elements(src)) - begin * CHUNK) / block;
    Cursor from(src, begin * CHUNK / block), to(dst, begin * CHUNK);
    float buffer[STAGE];
    while (left > 0) {
        const int64_t n = least(left, least(from.stride() == bytes ? from.room() : 1, STAGE / block));
        dequantize(from.p, buffer, n * block);
        scatter<D>(buffer, to, n * block);
        from.advance(n);
        left -= n;
    }
    return true;
}

// Types whose rows have headers go by whole rows; the other side has rows of the same length. Items are rows.
// arg.i64[0]: bytes to move if the types are the same, else 0.
bool run_whole_rows(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &src = *step.src[0], &dst = *step.dst;
    const int64_t bytes = step.arg.i64[0];
    const DequantRow dequantize = src.type == TYPE_F32 ? nullptr : dequant_row_for(src.type);
    const QuantRow quantize = dequantize != nullptr ? nullptr : quant_row_for(dst.type);
    RowCursor from(src, begin), to(dst, begin);
    for (int64_t row = begin; row < end; ++row, from.next(), to.next()) {
        if (bytes != 0)
            std::memmove(to.of(dst), from.of(src), (size_t)bytes);
        else if (dequantize != nullptr)
            dequantize(from.of(src), reinterpret_cast<float*>(to.of(dst)), src.ne[0]);
        else
            quantize(reinterpret_cast<const float*>(from.of(src)), to.of(dst), src.ne[0]);
    }
    return true;
}

int float_slot(int32_t type) { return type == TYPE_F32 ? 0 : type == TYPE_F16 ? 1 : type == TYPE_BF16 ? 2 : -1; }

struct Functions {
    Step::Fn plain, transposed;
};
template <class C>
constexpr Functions functions() {
    return {run_plain<C>, run_transposed<C>};
}

// The functions of a pair of plain types; {} if there are none.
Functions plain_functions(int32_t from, int32_t to) {
    if (from == to) {
        switch (block_bytes(from)) {
            case 1:
                return functions<Same<1>>();
            case 2:
                return functions<Same<2>>();
            case 4:
                return functions<Same<4>>();
            case 8:
                return functions<Same<8>>();
            default:
                return {};
        }
    }
    if (from == TYPE_F32 && to == TYPE_I32) return functions<F32toI32>();
    if (from == TYPE_I32 && to == TYPE_F32) return functions<I32toF32>();
    static constexpr Functions FLOATS[3][3] = {
        {{}, functions<Convert<AsF32, AsF16>>(), functions<Convert<AsF32, AsBF16>>()},
        {functions<Convert<AsF16, AsF32>>(), {}, functions<Convert<AsF16, AsBF16>>()},
        {functions<Convert<AsBF16, AsF32>>(), functions<Convert<AsBF16, AsF16>>(), {}},
    };
    const int a = float_slot(from), b = float_slot(to);
    return a < 0 || b < 0 ? Functions{} : FLOATS[a][b];
}

// dst is packed along dimension x and src along the other one, and both are wide enough for tiles to pay.
bool is_transposition(const Tensor& src, const Tensor& dst, int x) {
    return same_shape(src, dst) && dst.nb[x] == block_bytes(dst.type) && src.nb[1 - x] == block_bytes(src.type) &&
           src.nb[x] != block_bytes(src.type) && src.ne[0] >= 4 && src.ne[1] >= 4;
}

Step& add_copy(PlanBuilder& builder, const Tensor& node, Step::Fn fn, int64_t n_items, int64_t work) {
    Step& step = builder.add_bare(fn, &node, n_items, work);
    step.src[0] = node.src[0];
    builder.reads(*node.src[0]);  // not src[1], CPY's destination: its old values do not count
    builder.writes(node);
    return step;
}

// Relies on: rows of both of the same length, without gaps.
bool prepare_whole_rows(PlanBuilder& builder, const Tensor& node) {
    const Tensor& src = *node.src[0];
    const bool same = src.type == node.type;
    const bool converts = (node.type == TYPE_F32 && dequant_row_for(src.type) != nullptr) ||
                          (src.type == TYPE_F32 && quant_row_for(node.type) != nullptr);
    if (src.ne[0] != node.ne[0] || !rows_contiguous(src) || !rows_contiguous(node) || (!same && !converts))
        return builder.unsupported(node, "types %s -> %s, rows of %lld and %lld elements", type_traits(src.type)->name,
                                   type_traits(node.type)->name, static_cast<long long>(src.ne[0]),
                                   static_cast<long long>(node.ne[0]));
    add_copy(builder, node, run_whole_rows, n_rows(node), 3 * n_elements(src)).arg.i64[0] =
        same ? row_bytes(src.type, src.ne[0]) : 0;
    return true;
}

// Relies on: equal numbers of elements; rows of quantised tensors hold whole blocks.
bool prepare(PlanBuilder& builder, const Tensor& node) {
    const Tensor& src = *node.src[0];
    const int64_t n = n_elements(src);
    const auto chunks = [](int64_t units) { return chunk_count(units, CHUNK); };
    if (type_traits(src.type)->row_meta != 0 || type_traits(node.type)->row_meta != 0)
        return prepare_whole_rows(builder, node);
    if (is_quantized(src.type) && src.type == node.type) {
        const int64_t blocks = n / block_size(src.type);
        add_copy(builder, node, run_blocks, chunks(blocks), n / 2).arg.i64[0] = block_bytes(src.type);
        return true;
    }
    if (is_quantized(node.type)) {
        static constexpr Step::Fn FN[3] = {run_quantize<AsF32>, run_quantize<AsF16>, run_quantize<AsBF16>};
        const int from = float_slot(src.type);
        if (from >= 0 && quant_row_for(node.type) != nullptr) {
            const int64_t cost = block_size(node.type) == QK_K ? 200 : 3;  // the larger blocks search for their scales
            add_copy(builder, node, FN[from], chunks(n), cost * n);
            return true;
        }
    } else if (is_quantized(src.type)) {
        static constexpr Step::Fn FN[3] = {run_dequantize<AsF32>, run_dequantize<AsF16>, run_dequantize<AsBF16>};
        const int to = float_slot(node.type);
        if (to >= 0 && dequant_row_for(src.type) != nullptr) {
            add_copy(builder, node, FN[to], chunks(n), 2 * n);
            return true;
        }
    } else {
        const Functions fn = plain_functions(src.type, node.type);
        if (fn.plain != nullptr) {
            for (int x = 0; x < 2; ++x) {
                if (!is_transposition(src, node, x)) continue;
                const int64_t tiles = chunk_count(node.ne[0], TILE) * chunk_count(node.ne[1], TILE);
                add_copy(builder, node, fn.transposed, tiles * node.ne[2] * node.ne[3], 4 * n).arg.i64[0] = x;
                return true;
            }
            add_copy(builder, node, fn.plain, chunks(n), rows_contiguous(src) && rows_contiguous(node) ? n : 4 * n);
            return true;
        }
    }
    return builder.unsupported(node, "types %s -> %s", type_traits(src.type)->name, type_traits(node.type)->name);
}

}  // namespace

void register_copy(OpTable& table) {
    table.prepare[OP_DUP] = prepare;
    table.prepare[OP_CPY] = prepare;
    table.prepare[OP_CONT] = prepare;
}

GGR_KERNELS_END
