// What the lanes of a warp do together: votes and shuffles.
#pragma once

static inline void __syncwarp(std::uint32_t mask = 0xffffffffu) { cuda_emulation_meet(mask, nullptr, nullptr); }
static inline std::uint32_t __activemask() { return cuda_emulation_active_mask(); }

struct CudaEmulationVote {
  bool predicate;
  std::uint32_t ballot;
};

static inline void cuda_emulation_vote(void* const brought[32], std::uint32_t lanes) {
  std::uint32_t ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (lanes >> lane & 1 && static_cast<CudaEmulationVote*>(brought[lane])->predicate) ballot |= 1u << lane;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (lanes >> lane & 1) static_cast<CudaEmulationVote*>(brought[lane])->ballot = ballot;
}

static inline std::uint32_t __ballot_sync(std::uint32_t mask, int predicate) {
  CudaEmulationVote vote{predicate != 0, 0};
  cuda_emulation_meet(mask, cuda_emulation_vote, &vote);
  return vote.ballot;
}
static inline int __any_sync(std::uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(std::uint32_t mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

template <typename T>
struct CudaEmulationShuffle {
  T value;
  unsigned source;
  T result;
};

template <typename T>
static void cuda_emulation_exchange(void* const brought[32], std::uint32_t lanes) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    auto* shuffle = static_cast<CudaEmulationShuffle<T>*>(brought[lane]);
    if (lanes >> shuffle->source & 1)
      shuffle->result = static_cast<CudaEmulationShuffle<T>*>(brought[shuffle->source])->value;
    else  // undefined in CUDA: what nobody should use
      std::memset(static_cast<void*>(&shuffle->result), 0xff, sizeof(T));
  }
}

template <typename T>
static inline T cuda_emulation_shuffle(std::uint32_t mask, T value, unsigned source) {
  CudaEmulationShuffle<T> shuffle{value, source, value};
  cuda_emulation_meet(mask, cuda_emulation_exchange<T>, &shuffle);
  return shuffle.result;
}

// Lanes are numbered within segments of `width`; a lane whose source is beyond its segment keeps its own value.
template <typename T>
static inline T __shfl_sync(std::uint32_t mask, T value, int source, int width = 32) {
  const unsigned lane = cuda_emulation_lane(), segment = lane & ~(width - 1u);
  return cuda_emulation_shuffle(mask, value, segment + (source & (width - 1u)));
}
template <typename T>
static inline T __shfl_up_sync(std::uint32_t mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = cuda_emulation_lane();
  return cuda_emulation_shuffle(mask, value, (lane & (width - 1u)) < delta ? lane : lane - delta);
}
template <typename T>
static inline T __shfl_down_sync(std::uint32_t mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = cuda_emulation_lane();
  return cuda_emulation_shuffle(mask, value, (lane & (width - 1u)) + delta >= unsigned(width) ? lane : lane + delta);
}
template <typename T>
static inline T __shfl_xor_sync(std::uint32_t mask, T value, int bits, int width = 32) {
  const unsigned lane = cuda_emulation_lane(), source = lane ^ unsigned(bits);
  return cuda_emulation_shuffle(mask, value, source / width > lane / width ? lane : source);
}
