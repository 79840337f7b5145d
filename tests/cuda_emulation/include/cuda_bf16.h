// bfloat16, as NVIDIA's cuda_bf16.h names it.
#pragma once
#include "narrow_floats.h"

using __nv_bfloat16 = CudaEmulationNarrow<CudaEmulationBfloat>;
using nv_bfloat16 = __nv_bfloat16;
using __nv_bfloat162 = CudaEmulationNarrow2<CudaEmulationBfloat>;
using nv_bfloat162 = __nv_bfloat162;

static inline float __bfloat162float(nv_bfloat16 x) { return x; }
static inline nv_bfloat16 __float2bfloat16(float x) { return nv_bfloat16(x); }
static inline nv_bfloat16 __float2bfloat16_rn(float x) { return nv_bfloat16(x); }
static inline nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return nv_bfloat16::from_bits(bits); }
static inline unsigned short __bfloat16_as_ushort(nv_bfloat16 x) { return x.bits; }
static inline nv_bfloat162 make_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
static inline nv_bfloat162 __halves2bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
static inline nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
