// Code books of the IQ types, outside the instruction-set levels: 33 KiB that all levels share.
#pragma once

#include <cstdint>

namespace ggr {

template <class Entry, int N>
struct Grid {
    Entry entries[N];
};

// Eight bytes an entry, the first in the low byte. IQ2: magnitudes 8, 25, 43. IQ1: 8, 16, 24 for -1, 0, 1.
extern const Grid<uint64_t, 256> IQ2_XXS_GRID;
extern const Grid<uint64_t, 512> IQ2_XS_GRID;
extern const Grid<uint64_t, 1024> IQ2_S_GRID;
extern const Grid<uint64_t, 2048> IQ1_GRID;
// Four bytes an entry. XXS: magnitudes 4, 12, 20, 28, 36, 44, 52, 62. S: 1, 3, .. 15.
extern const Grid<uint32_t, 256> IQ3_XXS_GRID;
extern const Grid<uint32_t, 512> IQ3_S_GRID;

}  // namespace ggr
