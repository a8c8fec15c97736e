// Memory that is used again. Fresh memory costs a page fault for every 4 KiB, which in a short call is more than the
// work done in it, and in a training step of a large layer as much as a product.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace fusedrnn {

// Blocks that were given back, for whoever asks next. Their size stands in front of them.
class Pool {
 public:
  // Never destroyed: tensors may outlive static objects.
  static Pool& instance() {
    static Pool* pool = new Pool;
    return *pool;
  }

  // A block of at least `bytes`, aligned to 64 bytes, or null when there is no memory.
  void* take(size_t bytes) {
    // Where another thread is in here, or was in here when the process forked, do without.
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock) {
      size_t best = free_.size();
      for (size_t i = 0; i < free_.size(); ++i) {
        const size_t size = free_[i].size;
        // Not a block that is much too large: then both would be kept for a task that needs one.
        if (size >= bytes && size <= bytes + bytes / 4 + kSmall && (best == free_.size() || size < free_[best].size))
          best = i;
      }
      if (best < free_.size()) {
        const Block block = free_[best];
        free_.erase(free_.begin() + ptrdiff_t(best));
        kept_ -= block.size;
        return block.p;
      }
    }
    void* p = nullptr;
    if (posix_memalign(&p, kHeader, kHeader + (bytes + kHeader - 1) / kHeader * kHeader) != 0) return nullptr;
    *static_cast<size_t*>(p) = bytes;
    return static_cast<char*>(p) + kHeader;
  }

  void give(void* p) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock && size_of(p) <= limit_) {
      // The oldest make room: sizes that are not asked for any more.
      while (kept_ + size_of(p) > limit_) drop_oldest();
      free_.push_back({p, size_of(p)});
      kept_ += size_of(p);
    } else {
      std::free(static_cast<char*>(p) - kHeader);
    }
  }

  // Bytes that are kept at the most from now on; 0 frees all.
  void limit(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    while (kept_ > limit_) drop_oldest();
  }

 private:
  static constexpr size_t kHeader = 64, kSmall = 64 << 10;

  // The size once more: looking for a block must not read a page of each.
  struct Block {
    void* p;
    size_t size;
  };

  static size_t size_of(void* p) { return *reinterpret_cast<size_t*>(static_cast<char*>(p) - kHeader); }
  void drop_oldest() {
    kept_ -= free_.front().size;
    std::free(static_cast<char*>(free_.front().p) - kHeader);
    free_.erase(free_.begin());
  }

  std::mutex mutex_;
  std::vector<Block> free_;  // oldest first
  size_t kept_ = 0, limit_ = size_t(256) << 20;
};

// Working memory of a call. The thread keeps the block for its next call.
class Workspace {
 public:
  // The block is the call's as long as the call lasts, so that calls may nest.
  Workspace() : block_(kept().take()) {}
  ~Workspace() {
    for (void* p : others_) Pool::instance().give(p);
    if (used_ > block_.size && used_ <= kKept) {
      std::free(block_.p);
      void* p = nullptr;
      const size_t size = (used_ + used_ / 4 + kPage - 1) / kPage * kPage;
      block_ = posix_memalign(&p, kPage, size) == 0 ? Block{static_cast<char*>(p), size} : Block();
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
    void* p = Pool::instance().take(bytes);
    if (p) others_.push_back(p);
    return p;
  }

 private:
  static constexpr size_t kPage = 4096, kKept = size_t(1) << 20;  // larger pieces come from the pool

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

  Block block_;
  size_t used_ = 0;
  std::vector<void*> others_;
};

}  // namespace fusedrnn
