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

#define CUDA_EMULATION_NARROW template <typename F> static inline
#define N CudaEmulationNarrow<F>
#define N2 CudaEmulationNarrow2<F>

#define CUDA_EMULATION_BINARY(op, name)                                                       \
  CUDA_EMULATION_NARROW N operator op(N x, N y) { return N(float(x) op float(y)); }           \
  CUDA_EMULATION_NARROW N2 operator op(N2 x, N2 y) { return {x.x op y.x, x.y op y.y}; }       \
  CUDA_EMULATION_NARROW N name(N x, N y) { return x op y; }                                   \
  CUDA_EMULATION_NARROW N name##_rn(N x, N y) { return x op y; }                              \
  CUDA_EMULATION_NARROW N2 name##2(N2 x, N2 y) { return x op y; }
CUDA_EMULATION_BINARY(+, __hadd)
CUDA_EMULATION_BINARY(-, __hsub)
CUDA_EMULATION_BINARY(*, __hmul)
CUDA_EMULATION_BINARY(/, __hdiv)
#undef CUDA_EMULATION_BINARY
CUDA_EMULATION_NARROW N2 h2div(N2 x, N2 y) { return x / y; }

#define CUDA_EMULATION_COMPARISON(op, name)                                                   \
  CUDA_EMULATION_NARROW bool operator op(N x, N y) { return float(x) op float(y); }           \
  CUDA_EMULATION_NARROW bool name(N x, N y) { return x op y; }
CUDA_EMULATION_COMPARISON(<, __hlt)
CUDA_EMULATION_COMPARISON(>, __hgt)
CUDA_EMULATION_COMPARISON(<=, __hle)
CUDA_EMULATION_COMPARISON(>=, __hge)
CUDA_EMULATION_COMPARISON(==, __heq)
CUDA_EMULATION_COMPARISON(!=, __hne)
#undef CUDA_EMULATION_COMPARISON

CUDA_EMULATION_NARROW N operator-(N x) { return N::from_bits(x.bits ^ 0x8000); }
CUDA_EMULATION_NARROW N __hneg(N x) { return -x; }
CUDA_EMULATION_NARROW N __habs(N x) { return N::from_bits(x.bits & 0x7fff); }
CUDA_EMULATION_NARROW N __hmax(N x, N y) { return N(max(float(x), float(y))); }
CUDA_EMULATION_NARROW N __hmin(N x, N y) { return N(min(float(x), float(y))); }
CUDA_EMULATION_NARROW N __hfma(N x, N y, N z) { return N(std::fma(double(float(x)), double(float(y)), double(float(z)))); }
CUDA_EMULATION_NARROW N2 __hfma2(N2 x, N2 y, N2 z) { return {__hfma(x.x, y.x, z.x), __hfma(x.y, y.y, z.y)}; }
CUDA_EMULATION_NARROW N2 __hmax2(N2 x, N2 y) { return {__hmax(x.x, y.x), __hmax(x.y, y.y)}; }
CUDA_EMULATION_NARROW N2 __hmin2(N2 x, N2 y) { return {__hmin(x.x, y.x), __hmin(x.y, y.y)}; }
CUDA_EMULATION_NARROW bool __hisnan(N x) { return float(x) != float(x); }
CUDA_EMULATION_NARROW int __hisinf(N x) { return std::isinf(float(x)); }
CUDA_EMULATION_NARROW N __low2half(N2 x) { return x.x; }
CUDA_EMULATION_NARROW N __high2half(N2 x) { return x.y; }

#define CUDA_EMULATION_FUNCTION(name, value) \
  CUDA_EMULATION_NARROW N name(N h) {        \
    const float x = h;                       \
    return N(value);                         \
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

#undef N
#undef N2
#undef CUDA_EMULATION_NARROW
