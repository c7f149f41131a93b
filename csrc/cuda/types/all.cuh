// All quantised types that kernels are made for. The host lists the same in families/types.h.
#pragma once

#include "cuda/types/grid.cuh"
#include "cuda/types/ik.cuh"
#include "cuda/types/ik_small.cuh"
#include "cuda/types/interleaved.cuh"
#include "cuda/types/interleaved_grid.cuh"
#include "cuda/types/k.cuh"
#include "cuda/types/small.cuh"
#include "cuda/types/tiny.cuh"
