// A dialect as native code reads it: offsets, sizes and number maps, filled once from a table of
// ggml_rpc/spec/dialects.
#pragma once

#include <cstdint>

namespace ggr {

// Commands by internal number; a dialect maps its byte values to them.
enum Command : int32_t {
    CMD_ALLOC_BUFFER = 0,
    CMD_GET_ALIGNMENT,
    CMD_GET_MAX_SIZE,
    CMD_BUFFER_GET_BASE,
    CMD_FREE_BUFFER,
    CMD_BUFFER_CLEAR,
    CMD_SET_TENSOR,
    CMD_SET_TENSOR_HASH,
    CMD_GET_TENSOR,
    CMD_COPY_TENSOR,
    CMD_GRAPH_COMPUTE,
    CMD_GET_DEVICE_MEMORY,
    CMD_INIT_TENSOR,
    CMD_GET_ALLOC_SIZE,
    CMD_HELLO,
    CMD_DEVICE_COUNT,
    CMD_GRAPH_RECOMPUTE,
    CMD_MEMSET_TENSOR,
    CMD_SET_TENSOR_2D,
    CMD_GET_TENSOR_2D,
    CMD_COMM_INIT,
    CMD_COMM_ALLREDUCE,
    CMD_COMM_FREE,
    CMD_COUNT_,
};

const char* command_name(int32_t command);

enum ReplyKind : uint8_t { REPLY_NONE = 0, REPLY_EMPTY = 1, REPLY_DATA = 2 };

constexpr int64_t VARIABLE_LENGTH = -1;

// Where the fields of one rpc_tensor lie; -1: the dialect has no such field.
struct TensorLayout {
    int32_t bytes;
    int32_t id, type, buffer, ne, nb, op, params, flags, src, view_src, view_offs, data, name, use_count;
    int32_t dim_bytes;  // of each entry of ne and nb: 4 or 8
    int32_t n_src;
    int32_t n_name;
};

// Enumerations whose values travel in parameter words, in the order of `ENUMS` of ggml_rpc/wire/_codec.pyx.
enum EnumTable : int32_t {
    ENUM_UNARY = 0,
    ENUM_GLU,
    ENUM_PREC,
    ENUM_POOL,
    ENUM_SORT_ORDER,
    ENUM_SCALE_MODE,
    ENUM_TRI,
    ENUM_OP_HINT,
    ENUM_COUNT_,
};

constexpr int32_t MAX_ENUM_VALUE = 63;
constexpr int32_t MAX_ENUM_PARAMS = 32;

// A parameter word of an op (internal id) that holds a value of an enumeration in the bits of `mask`.
struct EnumParam {
    int32_t op, word;
    uint32_t mask;
    int32_t table;
};

struct DialectTable {
    char name[48];
    TensorLayout tensor;
    int32_t command_of[256];            // wire byte -> Command, -1: unknown
    int64_t request_bytes[CMD_COUNT_];  // payload length, or VARIABLE_LENGTH
    uint8_t reply[CMD_COUNT_];          // ReplyKind
    int32_t op_of[256];                 // wire number -> Op, -1: unknown
    int32_t type_of[512];
    int32_t enum_of[ENUM_COUNT_][MAX_ENUM_VALUE + 1];  // wire value -> internal value, -1: unknown
    EnumParam enum_params[MAX_ENUM_PARAMS];
    int32_t n_enum_params;
    int32_t set_tensor_flag;    // offset of cache_flag in SET_TENSOR, -1: none
    int32_t set_tensor_offset;  // offset of `offset`
    int32_t set_tensor_header;  // bytes before the data
    int32_t graph_device;       // offset of `device` in GRAPH_COMPUTE, -1: none
    int32_t graph_uid;          // offset of `uid`, -1: none
    int32_t graph_n_nodes;      // offset of `n_nodes`; the ids follow it
    int32_t recompute_device;   // offsets in GRAPH_RECOMPUTE, -1: none
    int32_t recompute_uid;
    int32_t recompute_offsets;  // offset of the number of new places of CPY nodes; the places follow it
    int32_t graph_cache_max;  // stored graphs of a device after which both sides clear; 0: only the last graph is kept
    bool device_field;        // device queries and ALLOC_BUFFER begin with a device number
    bool alloc_size_has_srcs;
    bool compute_flag;      // nodes without FLAG_COMPUTE are skipped
    bool cache_by_flag;     // SET_TENSOR is cached when its flag says so, not by size
    bool graph_status;      // GRAPH_COMPUTE is answered by one byte when the graph has run
    bool kv_bound;          // FLASH_ATTN_EXT's word 4 bounds the used cache
    bool set_rows_by_view;  // SET_ROWS may name its target by view_src alone
    bool ik_meaning;        // parameters as ik_llama.cpp means them (graph/ik.cpp)
};

}  // namespace ggr
