// Tensor cores by nvcuda::wmma: a fragment's elements are dealt out to the lanes in turn; the warp does a product.
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int m, int n, int k, typename T, typename Layout = void>
class fragment {
  static_assert((m == 16 && n == 16) || (m == 32 && n == 8) || (m == 8 && n == 32), "m16n16, m32n8 or m8n32");
  static_assert(k == 16, "products over 16 elements");

 public:
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? k : m;
  static constexpr int columns = std::is_same_v<Use, matrix_a> ? k : n;
  static constexpr int num_elements = rows * columns / 32;
  using element_type = T;
  T x[num_elements];
};

template <typename Fragment, typename T>
static inline void check_access(const T* address, unsigned stride) {
  // CUDA C++ Programming Guide, warp matrix functions: 256 bits, and a stride of a multiple of 16 bytes.
  if (reinterpret_cast<std::uintptr_t>(address) % 32)
    cuda_emulation_trap("a matrix fragment is loaded or stored at an address that is no multiple of 32 bytes");
  if (stride * sizeof(T) % 16) cuda_emulation_trap("the stride of a matrix in memory is no multiple of 16 bytes");
}

template <typename Fragment, typename Access>
static inline void each_element(unsigned stride, bool row_wise, Access access) {
  const unsigned lane = cuda_emulation_lane();
  for (int i = 0; i < Fragment::num_elements; ++i) {
    const unsigned element = i * 32 + lane, row = element / Fragment::columns, column = element % Fragment::columns;
    access(i, row_wise ? row * stride + column : column * stride + row);
  }
}

template <typename Use, int m, int n, int k, typename T, typename Layout>
static inline void load_matrix_sync(fragment<Use, m, n, k, T, Layout>& into, const T* from, unsigned stride) {
  using Fragment = fragment<Use, m, n, k, T, Layout>;
  check_access<Fragment>(from, stride);
  __syncwarp();
  each_element<Fragment>(stride, std::is_same_v<Layout, row_major>, [&](int i, unsigned at) { into.x[i] = from[at]; });
}

template <int m, int n, int k, typename T>
static inline void load_matrix_sync(fragment<accumulator, m, n, k, T>& into, const T* from, unsigned stride,
                                    layout_t layout) {
  using Fragment = fragment<accumulator, m, n, k, T>;
  check_access<Fragment>(from, stride);
  __syncwarp();
  each_element<Fragment>(stride, layout == mem_row_major, [&](int i, unsigned at) { into.x[i] = from[at]; });
}

template <int m, int n, int k, typename T>
static inline void store_matrix_sync(T* into, const fragment<accumulator, m, n, k, T>& from, unsigned stride,
                                     layout_t layout) {
  using Fragment = fragment<accumulator, m, n, k, T>;
  check_access<Fragment>(into, stride);
  __syncwarp();
  each_element<Fragment>(stride, layout == mem_row_major, [&](int i, unsigned at) { into[at] = from.x[i]; });
  __syncwarp();
}

template <typename Use, int m, int n, int k, typename T, typename Layout, typename Value>
static inline void fill_fragment(fragment<Use, m, n, k, T, Layout>& into, const Value& value) {
  for (T& element : into.x) element = T(value);
}

// What a lane brings to a product.
template <typename D, typename A, typename B, typename C>
struct Product {
  D* d;
  const A* a;
  const B* b;
  const C* c;
};

template <typename D, typename A, typename B, typename C>
static void multiply(void* const brought[32], std::uint32_t lanes) {
  using Sum = std::conditional_t<std::is_integral_v<typename A::element_type>, int, float>;
  if (lanes != 0xffffffffu) cuda_emulation_trap("a product of matrix fragments by less than a whole warp");
  Sum a[A::rows][A::columns], b[B::rows][B::columns], sums[D::rows][D::columns];
  const auto gather = [&](auto& matrix, auto member) {
    for (int lane = 0; lane < 32; ++lane) {
      const auto& own = *(static_cast<Product<D, A, B, C>*>(brought[lane])->*member);
      for (int i = 0; i < own.num_elements; ++i) (&matrix[0][0])[i * 32 + lane] = Sum(own.x[i]);
    }
  };
  gather(a, &Product<D, A, B, C>::a);
  gather(b, &Product<D, A, B, C>::b);
  gather(sums, &Product<D, A, B, C>::c);
  for (int row = 0; row < D::rows; ++row)
    for (int inner = 0; inner < A::columns; ++inner)
      for (int column = 0; column < D::columns; ++column) sums[row][column] += a[row][inner] * b[inner][column];
  for (int lane = 0; lane < 32; ++lane) {
    D& own = *static_cast<Product<D, A, B, C>*>(brought[lane])->d;
    for (int i = 0; i < own.num_elements; ++i) own.x[i] = typename D::element_type((&sums[0][0])[i * 32 + lane]);
  }
}

template <int m, int n, int k, typename T, typename AL, typename BL, typename DT, typename CT>
static inline void mma_sync(fragment<accumulator, m, n, k, DT>& d, const fragment<matrix_a, m, n, k, T, AL>& a,
                            const fragment<matrix_b, m, n, k, T, BL>& b, const fragment<accumulator, m, n, k, CT>& c) {
  using D = std::decay_t<decltype(d)>;
  using A = std::decay_t<decltype(a)>;
  using B = std::decay_t<decltype(b)>;
  using C = std::decay_t<decltype(c)>;
  Product<D, A, B, C> product{&d, &a, &b, &c};
  cuda_emulation_meet(0xffffffffu, multiply<D, A, B, C>, &product);
}

}  // namespace wmma
}  // namespace nvcuda
