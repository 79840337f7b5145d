// Floating-point numbers of 16 bits: every operation is done in float and rounded to nearest, ties to even.
#pragma once
#include "cuda.h"

struct CudaEmulationHalf {
  static std::uint16_t round(float x) { return cuda_emulation_bits<std::uint16_t>(_Float16(x)); }
  static std::uint16_t round(double x) { return cuda_emulation_bits<std::uint16_t>(_Float16(x)); }
  static float widen(std::uint16_t bits) { return float(cuda_emulation_bits<_Float16>(bits)); }
};

struct CudaEmulationBfloat {
  static std::uint16_t round(float x) {
    const std::uint32_t bits = cuda_emulation_bits<std::uint32_t>(x);
    if (x != x) return 0x7fff;
    return std::uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static std::uint16_t round(double x) { return round(float(x)); }
  static float widen(std::uint16_t bits) { return cuda_emulation_bits<float>(std::uint32_t(bits) << 16); }
};

template <typename Format>
struct alignas(2) CudaEmulationNarrow {
  std::uint16_t bits;

  CudaEmulationNarrow() = default;
  CudaEmulationNarrow(const CudaEmulationNarrow&) = default;
  CudaEmulationNarrow(const volatile CudaEmulationNarrow& other) : bits(other.bits) {}
  CudaEmulationNarrow(float x) : bits(Format::round(x)) {}
  CudaEmulationNarrow(double x) : bits(Format::round(x)) {}
  template <typename Integer, typename = std::enable_if_t<std::is_integral_v<Integer>>>
  CudaEmulationNarrow(Integer x) : bits(Format::round(double(x))) {}
  CudaEmulationNarrow& operator=(const CudaEmulationNarrow&) = default;
  void operator=(const CudaEmulationNarrow& other) volatile { bits = other.bits; }
  void operator=(const volatile CudaEmulationNarrow& other) volatile { bits = other.bits; }
  operator float() const { return Format::widen(bits); }
  operator float() const volatile { return Format::widen(bits); }
  CudaEmulationNarrow& operator+=(CudaEmulationNarrow y) { return *this = *this + y; }
  CudaEmulationNarrow& operator-=(CudaEmulationNarrow y) { return *this = *this - y; }
  CudaEmulationNarrow& operator*=(CudaEmulationNarrow y) { return *this = *this * y; }
  CudaEmulationNarrow& operator/=(CudaEmulationNarrow y) { return *this = *this / y; }

  static CudaEmulationNarrow from_bits(std::uint16_t bits) {
    CudaEmulationNarrow made;
    made.bits = bits;
    return made;
  }
};

template <typename F>
struct alignas(4) CudaEmulationNarrow2 {
  CudaEmulationNarrow<F> x, y;
  CudaEmulationNarrow2() = default;
  CudaEmulationNarrow2(CudaEmulationNarrow<F> x, CudaEmulationNarrow<F> y) : x(x), y(y) {}
};

#define NARROW_FUNCTION template <typename F> static inline
#define NARROW CudaEmulationNarrow<F>
#define NARROW2 CudaEmulationNarrow2<F>

#define CUDA_EMULATION_BINARY(op, name) \
  NARROW_FUNCTION NARROW operator op(NARROW x, NARROW y) { return NARROW(float(x) op float(y)); } \
  NARROW_FUNCTION NARROW2 operator op(NARROW2 x, NARROW2 y) { return {x.x op y.x, x.y op y.y}; } \
  NARROW_FUNCTION NARROW name(NARROW x, NARROW y) { return x op y; } \
  NARROW_FUNCTION NARROW name##_rn(NARROW x, NARROW y) { return x op y; } \
  NARROW_FUNCTION NARROW2 name##2(NARROW2 x, NARROW2 y) { return x op y; }
CUDA_EMULATION_BINARY(+, __hadd)
CUDA_EMULATION_BINARY(-, __hsub)
CUDA_EMULATION_BINARY(*, __hmul)
CUDA_EMULATION_BINARY(/, __hdiv)
#undef CUDA_EMULATION_BINARY
NARROW_FUNCTION NARROW2 h2div(NARROW2 x, NARROW2 y) { return x / y; }

#define CUDA_EMULATION_COMPARISON(op, name) \
  NARROW_FUNCTION bool operator op(NARROW x, NARROW y) { return float(x) op float(y); } \
  NARROW_FUNCTION bool name(NARROW x, NARROW y) { return x op y; }
CUDA_EMULATION_COMPARISON(<, __hlt)
CUDA_EMULATION_COMPARISON(>, __hgt)
CUDA_EMULATION_COMPARISON(<=, __hle)
CUDA_EMULATION_COMPARISON(>=, __hge)
CUDA_EMULATION_COMPARISON(==, __heq)
CUDA_EMULATION_COMPARISON(!=, __hne)
#undef CUDA_EMULATION_COMPARISON

NARROW_FUNCTION NARROW operator-(NARROW x) { return NARROW::from_bits(x.bits ^ 0x8000); }
NARROW_FUNCTION NARROW __hneg(NARROW x) { return -x; }
NARROW_FUNCTION NARROW __habs(NARROW x) { return NARROW::from_bits(x.bits & 0x7fff); }
NARROW_FUNCTION NARROW __hmax(NARROW x, NARROW y) { return NARROW(max(float(x), float(y))); }
NARROW_FUNCTION NARROW __hmin(NARROW x, NARROW y) { return NARROW(min(float(x), float(y))); }
NARROW_FUNCTION NARROW __hfma(NARROW x, NARROW y, NARROW z) {
  return NARROW(std::fma(double(float(x)), double(float(y)), double(float(z))));
}
NARROW_FUNCTION NARROW2 __hfma2(NARROW2 x, NARROW2 y, NARROW2 z) {
  return {__hfma(x.x, y.x, z.x), __hfma(x.y, y.y, z.y)};
}
NARROW_FUNCTION NARROW2 __hmax2(NARROW2 x, NARROW2 y) { return {__hmax(x.x, y.x), __hmax(x.y, y.y)}; }
NARROW_FUNCTION NARROW2 __hmin2(NARROW2 x, NARROW2 y) { return {__hmin(x.x, y.x), __hmin(x.y, y.y)}; }
NARROW_FUNCTION bool __hisnan(NARROW x) { return float(x) != float(x); }
NARROW_FUNCTION int __hisinf(NARROW x) { return std::isinf(float(x)); }
NARROW_FUNCTION NARROW __low2half(NARROW2 x) { return x.x; }
NARROW_FUNCTION NARROW __high2half(NARROW2 x) { return x.y; }

#define CUDA_EMULATION_FUNCTION(name, value) \
  NARROW_FUNCTION NARROW name(NARROW h) { \
    const float x = h; \
    return NARROW(value); \
  }
CUDA_EMULATION_FUNCTION(hexp, std::exp(x))
CUDA_EMULATION_FUNCTION(hexp2, std::exp2(x))
CUDA_EMULATION_FUNCTION(hexp10, std::pow(10.0f, x))
CUDA_EMULATION_FUNCTION(hlog, std::log(x))
CUDA_EMULATION_FUNCTION(hlog2, std::log2(x))
CUDA_EMULATION_FUNCTION(hlog10, std::log10(x))
CUDA_EMULATION_FUNCTION(hsin, std::sin(x))
CUDA_EMULATION_FUNCTION(hcos, std::cos(x))
CUDA_EMULATION_FUNCTION(htanh, std::tanh(x))
CUDA_EMULATION_FUNCTION(hsqrt, std::sqrt(x))
CUDA_EMULATION_FUNCTION(hrsqrt, 1.0f / std::sqrt(x))
CUDA_EMULATION_FUNCTION(hrcp, 1.0f / x)
CUDA_EMULATION_FUNCTION(hceil, std::ceil(x))
CUDA_EMULATION_FUNCTION(hfloor, std::floor(x))
CUDA_EMULATION_FUNCTION(htrunc, std::trunc(x))
CUDA_EMULATION_FUNCTION(hrint, std::nearbyint(x))
#undef CUDA_EMULATION_FUNCTION

#undef NARROW
#undef NARROW2
#undef NARROW_FUNCTION
