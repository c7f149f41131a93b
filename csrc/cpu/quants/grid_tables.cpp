// The code books of core/code_books.h once in memory.
#include "cpu/quants/grid_tables.h"

#include "core/code_books.h"

namespace ggr {
namespace {

template <class Entry, int N>
constexpr Grid<Entry, N> grid(const CodeBook<Entry, N>& book) {
    Grid<Entry, N> copy = {};
    for (int i = 0; i < N; ++i) copy.entries[i] = book.entries[i];
    return copy;
}

}  // namespace

constexpr Grid<uint64_t, 256> IQ2_XXS_GRID = grid(IQ2_XXS_BOOK);
constexpr Grid<uint64_t, 512> IQ2_XS_GRID = grid(IQ2_XS_BOOK);
constexpr Grid<uint64_t, 1024> IQ2_S_GRID = grid(IQ2_S_BOOK);
constexpr Grid<uint64_t, 2048> IQ1_GRID = grid(IQ1_BOOK);
constexpr Grid<uint32_t, 256> IQ3_XXS_GRID = grid(IQ3_XXS_BOOK);
constexpr Grid<uint32_t, 512> IQ3_S_GRID = grid(IQ3_S_BOOK);

}  // namespace ggr
