#include "wire/records.h"

#include <cstring>

namespace ggr {

namespace {

constexpr uint64_t EXTENT_LIMIT = uint64_t{1} << 62;

const char* const COMMAND_NAMES[CMD_COUNT_] = {
    "ALLOC_BUFFER",  "GET_ALIGNMENT",   "GET_MAX_SIZE", "BUFFER_GET_BASE", "FREE_BUFFER",     "BUFFER_CLEAR",
    "SET_TENSOR",    "SET_TENSOR_HASH", "GET_TENSOR",   "COPY_TENSOR",     "GRAPH_COMPUTE",   "GET_DEVICE_MEMORY",
    "INIT_TENSOR",   "GET_ALLOC_SIZE",  "HELLO",        "DEVICE_COUNT",    "GRAPH_RECOMPUTE", "MEMSET_TENSOR",
    "SET_TENSOR_2D", "GET_TENSOR_2D",   "COMM_INIT",    "COMM_ALLREDUCE",  "COMM_FREE",
};

uint64_t load_dim(const uint8_t* p, int32_t bytes) { return bytes == 8 ? load_u64(p) : load_u32(p); }

}  // namespace

const char* command_name(int32_t command) {
    return command >= 0 && command < CMD_COUNT_ ? COMMAND_NAMES[command] : "unknown";
}

uint32_t load_u32(const uint8_t* p) {
    uint32_t v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

uint64_t load_u64(const uint8_t* p) {
    uint64_t v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

void read_tensor(const TensorLayout& l, const uint8_t* r, WireTensor* out) {
    out->id = load_u64(r + l.id);
    out->type = load_u32(r + l.type);
    out->buffer = load_u64(r + l.buffer);
    for (int i = 0; i < MAX_DIMS; ++i) {
        out->ne[i] = load_dim(r + l.ne + i * l.dim_bytes, l.dim_bytes);
        out->nb[i] = load_dim(r + l.nb + i * l.dim_bytes, l.dim_bytes);
    }
    out->op = load_u32(r + l.op);
    std::memcpy(out->params, r + l.params, sizeof out->params);
    out->flags = static_cast<int32_t>(load_u32(r + l.flags));
    for (int i = 0; i < MAX_SRC; ++i) out->src[i] = i < l.n_src ? load_u64(r + l.src + 8 * i) : 0;
    out->view_src = load_u64(r + l.view_src);
    out->view_offs = load_u64(r + l.view_offs);
    out->data = load_u64(r + l.data);
    out->use_count = l.use_count >= 0 ? static_cast<int32_t>(load_u32(r + l.use_count)) : -1;
    const int n_name = l.n_name < MAX_NAME ? l.n_name : MAX_NAME;
    int n = 0;
    for (; n < n_name - 1; ++n) {
        const uint8_t c = r[l.name + n];
        if (c == 0) break;
        out->name[n] = c >= 0x20 && c < 0x7f ? static_cast<char>(c) : '?';
    }
    std::memset(out->name + n, 0, static_cast<size_t>(MAX_NAME - n));
}

bool check_layout(const DialectTable& dialect, const WireTensor& w, const char* command, Tensor* out, Error* err) {
    std::memcpy(out->name, w.name, sizeof out->name);
    const int32_t type = w.type < 512 ? dialect.type_of[w.type] : -1;
    const TypeTraits* traits = type_traits(type);
    if (traits == nullptr)
        return err->fail(Code::protocol, "%s: tensor '%s': type %u is not known in dialect %s", command, w.name, w.type,
                         dialect.name);
    out->type = type;
    const uint64_t block = static_cast<uint64_t>(traits->block), bytes = static_cast<uint64_t>(traits->bytes);
    if (w.ne[0] % block != 0)
        return err->fail(Code::protocol, "%s: tensor '%s': ne[0] = %llu is no multiple of the block of %s (%llu)",
                         command, w.name, static_cast<unsigned long long>(w.ne[0]), traits->name,
                         static_cast<unsigned long long>(block));
    // Element count and extent, each product and sum checked.
    const uint64_t row_meta = static_cast<uint64_t>(traits->row_meta);
    uint64_t elements = 1, extent = block == 1 ? bytes : row_meta, contiguous = bytes;
    for (int i = 0; i < MAX_DIMS; ++i) {
        const uint64_t ne = w.ne[i];
        uint64_t nb = w.nb[i];
        const uint64_t steps = i == 0 ? ne / block : ne;
        if (steps <= 1 || i == 0) {
            // A stride that is never walked can arrive cut to 32 bits; blocks of a quantised row are always adjacent.
            if (steps <= 1)
                nb = contiguous;
            else if (block > 1 && nb != bytes)
                return err->fail(Code::protocol, "%s: tensor '%s': nb[0] = %llu, blocks of %s are %llu bytes", command,
                                 w.name, static_cast<unsigned long long>(nb), traits->name,
                                 static_cast<unsigned long long>(bytes));
        }
        if (block == 1 && nb % bytes != 0)
            return err->fail(Code::protocol, "%s: tensor '%s': nb[%d] = %llu is no multiple of the element size %llu",
                             command, w.name, i, static_cast<unsigned long long>(nb),
                             static_cast<unsigned long long>(bytes));
        uint64_t span = 0, sum = 0;
        const uint64_t walked = i == 0 && block > 1 ? steps : (steps == 0 ? 0 : steps - 1);
        if (__builtin_mul_overflow(walked, nb, &span) || __builtin_add_overflow(extent, span, &sum) ||
            sum >= EXTENT_LIMIT || __builtin_mul_overflow(elements, ne == 0 ? 1 : ne, &elements) ||
            elements >= EXTENT_LIMIT || __builtin_mul_overflow(nb, steps == 0 ? 1 : steps, &contiguous) ||
            (i == 0 && __builtin_add_overflow(contiguous, row_meta, &contiguous)) || contiguous >= EXTENT_LIMIT)
            return err->fail(Code::protocol, "%s: tensor '%s': its size overflows", command, w.name);
        extent = sum;
        out->ne[i] = static_cast<int64_t>(ne);
        out->nb[i] = static_cast<int64_t>(nb);
    }
    return true;
}

bool check_placement(const WireTensor& w, Buffer* buffer, const char* command, Tensor* out, Error* err) {
    const uint64_t size = static_cast<uint64_t>(extent_bytes(*out));
    if (w.data < buffer->base || w.data - buffer->base > buffer->size || size > buffer->size - (w.data - buffer->base))
        return err->fail(
            Code::session, "%s: tensor '%s' (%llu bytes at 0x%llx) lies outside its buffer (%llu bytes at 0x%llx)",
            command, w.name, static_cast<unsigned long long>(size), static_cast<unsigned long long>(w.data),
            static_cast<unsigned long long>(buffer->size), static_cast<unsigned long long>(buffer->base));
    const uint64_t offset = w.data - buffer->base;
    const TypeTraits* traits = type_traits(out->type);
    if (traits->block == 1 && offset % static_cast<uint64_t>(traits->bytes) != 0)
        return err->fail(Code::session, "%s: tensor '%s': its address is no multiple of the element size %d", command,
                         w.name, traits->bytes);
    out->buffer = buffer;
    out->data = buffer->data + offset;
    return true;
}

}  // namespace ggr
