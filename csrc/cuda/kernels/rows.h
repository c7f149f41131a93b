// Arguments of GET_ROWS, SET_ROWS and of copies between layouts and types.
#pragma once

#include "cuda/args.h"

namespace ggr {
namespace cuda {

struct GetRowsArgs {
    View src, ids, dst;
    int64_t row_bytes;  // of rows that are copied as they are
    int32_t absent_is_zero;
    FaultSite site;
};

// Units (elements, or blocks of 32) in logical order: `width` a row.
struct SetRowsArgs {
    View src, ids, dst;
    Divisor width, ne1, ne2;   // of src
    Divisor ids_ne1, ids_ne2;  // lists of ids repeat
    uint32_t total;
    int32_t wide;  // ids are 64 bits
    FaultSite site;
};

// Units in logical order on both sides: elements, blocks, pieces of 16 elements, or just bytes that stay together.
struct CopyArgs {
    View from, to;  // ne[0] in units, nb[0] from one to the next
    Divisor from_ne[3], to_ne[3];
    uint32_t total;
    int64_t row;  // elements, where rows are units
};

constexpr int ROWS_THREADS = 128, ROWS_CHUNK = 2048;  // elements of a row that a block of GET_ROWS takes
constexpr int COPY_THREADS = 256;

}  // namespace cuda
}  // namespace ggr
