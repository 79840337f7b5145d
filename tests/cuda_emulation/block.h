// A block of threads on one thread of the host: each CUDA thread has a stack of its own and runs until it has to wait.
#pragma once
#include <random>
#include <vector>

#include "device.h"

namespace emulation {

enum class State { kReady, kAtBarrier, kMeeting, kAsking, kEnded };

struct Fiber {
  void* stack_pointer;
  State state;
  unsigned number;
  std::uint32_t index;  // threadIdx, packed
  bool predicate;       // of the barrier
  std::uint32_t mask;   // of the meeting, or the answer to cuda_emulation_active_mask
  CudaEmulationCollective collective;
  void* brought;
};

// Lanes by what they do.
struct Warp {
  std::uint32_t present, ended, meeting, asking;
};

class BlockRunner {
 public:
  BlockRunner();
  BlockRunner(const BlockRunner&) = delete;

  // Runs the blocks [first, last) of a launch; numbers count x first. False where one fails: see outcome.
  bool run(const Launch& launch, std::uint64_t first, std::uint64_t last);
  Outcome outcome;

  // What a kernel asks for. These run on the stack of the thread that asks.
  Fiber& current() { return *current_; }
  const Launch& launch() const { return *launch_; }
  unsigned block_index(unsigned axis) const { return block_index_[axis]; }
  void* static_shared() { return static_shared_; }
  void* dynamic_shared() { return dynamic_shared_; }
  unsigned sync_block(bool predicate);
  void meet(std::uint32_t mask, CudaEmulationCollective collective, void* brought);
  std::uint32_t active_mask();
  [[noreturn]] void give_up(int code, const std::string& what);

  // Where a fault of the running thread continues, for a signal handler; null where no thread runs.
  void* resume_point() const { return current_ ? scheduler_pointer_ : nullptr; }
  void note_fault(int code, const std::string& what);

 private:
  static void fiber_main();
  void prepare();
  void reset_fiber(Fiber& fiber);
  bool run_block();
  bool run_alone();
  bool run_together();
  void switch_to(Fiber& fiber);
  void wait(State state);
  void try_meeting(Warp& warp, unsigned warp_number, Fiber& asked);
  bool answer_questions();
  bool check_red_zones();
  std::string where() const;
  Warp& warp_of(const Fiber& fiber) { return warps_[fiber.number / 32]; }
  bool fail_block(int code, const std::string& what);

  const Launch* launch_ = nullptr;
  unsigned block_index_[3] = {};
  unsigned threads_ = 0;
  std::vector<Fiber> fibers_;
  std::vector<unsigned> order_;
  std::vector<std::uint32_t> indices_;  // threadIdx of each thread, packed
  std::vector<Warp> warps_;
  Fiber* current_ = nullptr;
  void* scheduler_pointer_ = nullptr;
  bool alone_ = false;      // one fiber runs all threads in turn
  unsigned at_barrier_ = 0, ended_ = 0, last_count_ = 0;
  char* stacks_ = nullptr;
  char* static_shared_ = nullptr;
  char* dynamic_shared_ = nullptr;
  std::size_t dynamic_storage_ = 0;
  std::mt19937 random_;
};

// The runner whose threads run on this thread of the host; null on any other.
extern thread_local BlockRunner* runner;

extern "C" void emulation_switch(void** save, void* load);
extern "C" void emulation_resume();  // where emulation_switch goes on, with the stack pointer that it has loaded

}  // namespace emulation
