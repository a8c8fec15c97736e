// Working memory of a call. The thread keeps a block of it for its next call: fresh memory costs a page fault for every
// 4 KiB, which in short calls is more than the work done in it.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fusedrnn {

// Asks for huge pages under memory that is about to be written for the first time: a fault for every 2 MiB instead of
// one for every 4 KiB, and fewer misses of the TLB. Only a hint.
inline void advise_huge_pages(void* p, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(p) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

class Workspace {
 public:
  // Bytes that a thread keeps. A call that needs more is long enough not to mind.
  static constexpr size_t kKept = size_t(64) << 20;

  // The block is the call's as long as the call lasts, so that calls may nest.
  Workspace() : block_(kept().take()) {}
  ~Workspace() {
    for (void* p : others_) std::free(p);
    if (used_ > block_.size && used_ <= kKept) {
      std::free(block_.p);
      const size_t size = (used_ + used_ / 4 + kPage - 1) / kPage * kPage;
      block_ = {static_cast<char*>(reserve(size)), size};
      if (!block_.p) block_.size = 0;
    }
    kept().give(block_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Aligned to 64 bytes, or null when there is no memory. Lives as long as the workspace.
  void* allocate(size_t bytes) {
    bytes = bytes > 0 ? (bytes + 63) / 64 * 64 : 64;
    const size_t begin = used_;
    used_ += bytes;
    if (used_ <= block_.size) return block_.p + begin;
    others_.reserve(others_.size() + 1);
    void* p = reserve(bytes);
    if (p) others_.push_back(p);
    return p;
  }

 private:
  static constexpr size_t kPage = 4096, kHugePage = size_t(2) << 20;

  struct Block {
    char* p = nullptr;
    size_t size = 0;
  };
  struct Kept {
    Block block;
    Block take() {
      const Block b = block;
      block = Block();
      return b;
    }
    void give(const Block& b) {
      std::free(block.p);
      block = b;
    }
    ~Kept() { std::free(block.p); }
  };
  static Kept& kept() {
    static thread_local Kept k;
    return k;
  }

  static void* reserve(size_t bytes) {
    const bool huge = bytes >= 2 * kHugePage;
    const size_t unit = huge ? kHugePage : 64;
    void* p = nullptr;
    if (posix_memalign(&p, unit, (bytes + unit - 1) / unit * unit) != 0) return nullptr;
    if (huge) advise_huge_pages(p, bytes);
    return p;
  }

  Block block_;
  size_t used_ = 0;
  std::vector<void*> others_;
};

}  // namespace fusedrnn
