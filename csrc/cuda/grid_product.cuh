// The product of the persistent kernel: 16 rows of an exchanged matrix [B, K] times the weights that a block keeps.
//
// K is cut into chunks of 64 bytes, and chunk c belongs to warp c % kWarps. Columns are cut into tiles of eight. A
// fragment is what a lane holds of the weights of one tile and one chunk: with g = lane / 4 and q = lane % 4, the 16
// bytes at byte 16 q of the chunk, in column g. The rows to multiply by are read in the same way, 16 bytes at byte 16 q
// of the chunk, so that both go from memory into a product as they are: a matrix product does not care in which order K
// is summed, and mma calls the 16 bytes of q what it calls columns 2q, 2q + 1, 2q + 8, 2q + 9 (of TF32: q, q + 4) of
// one k-step and then of the next. No ldmatrix, no staging in shared memory: each element of a row is read once a
// block.
//
// Where fragments live: those of the first kRegisterChunks chunks of a warp (of its first group of tiles) in registers,
// those that shared memory has room for there, the rest in global memory, packed, where they are read from L2 each
// step. A thread writes and reads its own fragments alone, so none of this needs a barrier, and neighbours read
// neighbouring 16 bytes.
//
// A row comes into being while it is read: what others have not published yet is loaded again. All loads of a batch of
// chunks are on their way at once, and the first round of them starts before the values are there, since a load that
// finds nothing costs less than a load that is late.
//
// Order of sums, fixed: a thread adds its chunks in ascending order, then (FMA) lanes q are added as a tree, or inside
// the mma instruction, then whoever reads the partial sums adds warps in ascending order.
#pragma once
#include <cstring>
#include <type_traits>

#include "device.cuh"
#include "grid_plan.h"
#include "math.cuh"

namespace fusedrnn {
namespace cuda {

// An array that is cut out of a register, and back: 16 bytes of T.
template <class T>
struct Values {
  static constexpr int kCount = 16 / int(sizeof(T));
  T v[kCount];

  static FUSEDRNN_DEVICE Values of(const uint4& bits) {
    Values values;
    memcpy(values.v, &bits, 16);
    return values;
  }
  FUSEDRNN_DEVICE uint4 bits() const {
    uint4 all;
    memcpy(&all, v, 16);
    return all;
  }
};

// A value as it is multiplied: TF32 is rounded when it is written, once, and not by each block that reads it.
template <class T, bool Tf32>
FUSEDRNN_DEVICE T as_operand(T v) {
#if FUSEDRNN_ARCH >= 800
  if constexpr (Tf32) return __uint_as_float(to_tf32(v));
#endif
  return v;
}

// What a place of the exchange holds before it is published: the bits of a NaN that no arithmetic makes. Should a
// caller bring it, in h0 or in a gradient, its sign is taken.
FUSEDRNN_DEVICE unsigned bits_of(float v) { return __float_as_uint(v); }
FUSEDRNN_DEVICE unsigned short bits_of(__half v) { return __half_as_ushort(v); }
FUSEDRNN_DEVICE unsigned short bits_of(__nv_bfloat16 v) { return __bfloat16_as_ushort(v); }
template <class Bits>
constexpr Bits kUnwritten = Bits(~Bits(0));

// Whether a value in these 16 bytes is not there yet.
template <class T>
FUSEDRNN_DEVICE bool unwritten(const uint4& v) {
  if constexpr (sizeof(T) == 4) {
    return v.x == ~0u || v.y == ~0u || v.z == ~0u || v.w == ~0u;
  } else {
    // A half of ~x that is zero is where a borrow comes from.
    const auto any = [](unsigned x) { return (~x - 0x10001u) & x & 0x80008000u; };
    return (any(v.x) | any(v.y) | any(v.z) | any(v.w)) != 0;
  }
}

// Rows of an exchange: row b is at p + b pitch, zero beyond its K.
template <class T>
struct Exchanged {
  T* p;
  int64_t pitch;
  using Bits = decltype(bits_of(T()));

  FUSEDRNN_DEVICE void publish(int64_t row, int64_t k, T v) const {
    const Bits bits = bits_of(v);
    store_relaxed(at(row, k), bits == kUnwritten<Bits> ? Bits(bits >> 1) : bits);
  }
  FUSEDRNN_DEVICE void clear(int64_t row, int64_t k) const { store_relaxed(at(row, k), kUnwritten<Bits>); }

  // As it is now. Rows that are not there are zero.
  FUSEDRNN_DEVICE uint4 load(int64_t row, int64_t rows, int chunk, int chunks) const {
    constexpr int kChunk = kChunkBytes / int(sizeof(T));
    if (row >= rows || chunk >= chunks) return uint4{0, 0, 0, 0};
    const T* from = p + row * pitch + int64_t(chunk) * kChunk + threadIdx.x % 4 * Values<T>::kCount;
    return load_relaxed(reinterpret_cast<const uint4*>(from));
  }

 private:
  FUSEDRNN_DEVICE Bits* at(int64_t row, int64_t k) const { return reinterpret_cast<Bits*>(p + row * pitch + k); }
};

// Partial sums of a pass: [kWarps][rows][pitch], of sums_pitch.
struct Sums {
  float* p;
  int rows, pitch;
  FUSEDRNN_DEVICE float* at(int warp, int row) const { return p + (warp * rows + row) * pitch; }
};

// Chunks whose rows are on their way together: of weights in registers, and of others. More of them spill.
#if FUSEDRNN_ARCH == 900
constexpr int kMmaAhead = 12, kMmaAheadOfSlots = 3, kFmaAhead = 2;
#else
constexpr int kMmaAhead = 6, kMmaAheadOfSlots = 1, kFmaAhead = 1;
#endif

// Rows at a time with FMA. Half types (bfloat16 on sm_75) are widened, which leaves registers for one.
constexpr int kFmaRows = 4, kFmaRowsOfHalves = 1;

// A few rows at a time with FMA, in float: lane (g, q) multiplies its 16 bytes of each row by column g of each tile.
template <class T, int Tiles>
struct FmaProduct {
  static constexpr int kRows = sizeof(T) == 2 ? kFmaRowsOfHalves : kFmaRows, kLoads = kRows;
  static constexpr int kAhead = kFmaAhead, kAheadOfSlots = kFmaAhead;
  float d[Tiles][kRows] = {};
  int rows;  // that are there

  explicit FUSEDRNN_DEVICE FmaProduct(int rows) : rows(rows) {}
  static FUSEDRNN_DEVICE int row_of_load(int i) { return i; }

  FUSEDRNN_DEVICE void multiply(int tile, const uint4 (&loaded)[kLoads], const uint4& weights) {
    const auto w = Values<T>::of(sizeof(T) == 2 ? kept_narrow(weights) : weights);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      const auto a = Values<T>::of(loaded[r]);
#pragma unroll
      for (int i = 0; i < Values<T>::kCount; ++i) d[tile][r] += to_compute(a.v[i]) * to_compute(w.v[i]);
    }
  }
  // Weights of half types (bfloat16 on sm_75) are widened at each use: the compiler would widen those in registers
  // once, before the first step, to twice as many registers. It does not move a shuffle.
  static FUSEDRNN_DEVICE uint4 kept_narrow(const uint4& v) {
    const int own = int(threadIdx.x % 32);
    return {__shfl_sync(~0u, v.x, own), __shfl_sync(~0u, v.y, own), __shfl_sync(~0u, v.z, own),
            __shfl_sync(~0u, v.w, own)};
  }
  FUSEDRNN_DEVICE void store(const Sums& sums, int warp, int row, int column) {
    const int lane = int(threadIdx.x % 32);
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float v = d[tile][r];
        v += __shfl_xor_sync(~0u, v, 1);
        v += __shfl_xor_sync(~0u, v, 2);
        // A row to each of the four lanes that have the sum.
        if (lane % 4 == r && r < rows) sums.at(warp, row + r)[column + tile * kTileColumns + lane / 4] = v;
      }
  }
};

// Sixteen rows at a time on tensor cores.
template <class T, int Tiles>
struct MmaProduct {
  static constexpr int kRows = 16, kLoads = 2, kAhead = kMmaAhead, kAheadOfSlots = kMmaAheadOfSlots;
  float d[Tiles][4] = {};
  int rows;  // that are there

  explicit FUSEDRNN_DEVICE MmaProduct(int rows) : rows(rows) {}
  static FUSEDRNN_DEVICE int row_of_load(int i) { return int(threadIdx.x % 32 / 4) + 8 * i; }

  FUSEDRNN_DEVICE void multiply(int tile, const uint4 (&loaded)[kLoads], const uint4& w) {
    const uint4 &low = loaded[0], &high = loaded[1];
#if FUSEDRNN_ARCH >= 800
    step(d[tile], {low.x, high.x, low.y, high.y}, {w.x, w.y});
    step(d[tile], {low.z, high.z, low.w, high.w}, {w.z, w.w});
#else
    mma_m16n8k8<T>(d[tile], {low.x, high.x}, {w.x});
    mma_m16n8k8<T>(d[tile], {low.y, high.y}, {w.y});
    mma_m16n8k8<T>(d[tile], {low.z, high.z}, {w.z});
    mma_m16n8k8<T>(d[tile], {low.w, high.w}, {w.w});
#endif
  }
  FUSEDRNN_DEVICE void store(const Sums& sums, int warp, int row, int column) {
    const int g = int(threadIdx.x % 32 / 4), q = int(threadIdx.x % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (g + 8 * half >= rows) continue;
      float* to = sums.at(warp, row + g + 8 * half) + column + 2 * q;
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile)
        *reinterpret_cast<float2*>(to + tile * kTileColumns) = float2{d[tile][2 * half], d[tile][2 * half + 1]};
    }
  }

 private:
#if FUSEDRNN_ARCH >= 800
  static FUSEDRNN_DEVICE void step(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if constexpr (std::is_same_v<T, float>)
      mma_m16n8k8_tf32(d, a, b);
    else
      mma_m16n8k16<T>(d, a, b);
  }
#endif
};

// float32 is exact unless TF32 is allowed; sm_75 has tensor cores for halves alone.
template <class T, bool Tf32>
constexpr bool multiplies_on_tensor_cores() {
#if FUSEDRNN_ARCH >= 800
  return !std::is_same_v<T, float> || Tf32;
#else
  return std::is_same_v<T, __half>;
#endif
}
template <class T, bool Tf32, int Tiles>
using Product = std::conditional_t<multiplies_on_tensor_cores<T, Tf32>(), MmaProduct<T, Tiles>, FmaProduct<T, Tiles>>;

// With half as many chunks on their way, for kernels that need more registers for other things.
template <class P>
struct Frugal : P {
  using P::P;
  static constexpr int kAhead = (P::kAhead + 1) / 2, kAheadOfSlots = (P::kAheadOfSlots + 1) / 2;
};

// The fragments of a thread. Slots count the chunks of a warp that are not in registers, group after group.
template <class Shape>
struct Weights {
  static constexpr int kTiles = Shape::kTiles, kKept = Shape::kRegisterChunks;
  uint4 kept[kKept][kTiles];
  uint4 *shared, *streamed;  // of this thread in slot 0; a slot has kSlot fragments
  int shared_slots;
  static constexpr int kSlot = Shape::kWarps * kTiles * 32;

  FUSEDRNN_DEVICE static int warp() { return int(threadIdx.x / 32); }
  FUSEDRNN_DEVICE static int chunk(int j) { return warp() + Shape::kWarps * j; }

  FUSEDRNN_DEVICE Weights(uint4* shared_base, uint4* streamed_base, const GridPlan& plan)
      : shared_slots(plan.shared_slots) {
    const int64_t own = warp() * kTiles * 32 + threadIdx.x % 32;
    shared = shared_base + own;
    streamed = streamed_base + int64_t(blockIdx.x) * (plan.slots - plan.shared_slots) * kSlot + own;
  }

  // Takes all weights of the block: weight(column, k) is asked once for each.
  template <class T, class Weight>
  FUSEDRNN_DEVICE void take(const GridPlan& plan, const Weight& weight) {
#pragma unroll
    for (int j = 0; j < kKept; ++j)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) kept[j][tile] = fragment<T>(tile, chunk(j), plan.chunks, weight);
    int slot = 0;
    for (int group = 0; group < plan.groups; ++group)
      for (int j = group ? 0 : kKept; chunk(j) < plan.chunks; ++j, ++slot)
        for (int tile = 0; tile < kTiles; ++tile)
          slot_at(slot)[tile * 32] = fragment<T>(group * kTiles + tile, chunk(j), plan.chunks, weight);
  }

  // Partial sums of the P::kRows rows of a from the first, which are rows `row`.. of the pass; there are none from end.
  template <class P, class T>
  FUSEDRNN_DEVICE void multiply(const Exchanged<T>& a, int64_t first, int64_t end, const GridPlan& plan,
                                const Sums& sums, int row) const {
    int slot = 0;
    for (int group = 0; group < plan.groups; ++group) {
      P product(end - first < P::kRows ? int(end - first) : P::kRows);
      if (group == 0) multiply_kept(product, a, first, end, plan.chunks);
      constexpr int kAhead = P::kAheadOfSlots;
      for (int j = group ? 0 : kKept; chunk(j) < plan.chunks; j += kAhead) {
        uint4 rows[kAhead][P::kLoads];
        await(product, rows, a, first, end, j, plan.chunks);
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (chunk(j + i) >= plan.chunks) break;
          multiply_slot(product, rows[i], slot++);
        }
      }
      product.store(sums, warp(), row, group * kTiles * kTileColumns);
    }
  }

 private:
  FUSEDRNN_DEVICE uint4* slot_at(int slot) const {
    return slot < shared_slots ? shared + slot * kSlot : streamed + int64_t(slot - shared_slots) * kSlot;
  }

  // A branch, since a pointer that may be of either memory makes generic loads.
  template <class P>
  FUSEDRNN_DEVICE void multiply_slot(P& product, const uint4 (&rows)[P::kLoads], int slot) const {
    if (slot < shared_slots) {
      multiply_tiles(product, rows, [from = shared + slot * kSlot](int tile) { return from[tile * 32]; });
    } else {
      const uint4* from = streamed + int64_t(slot - shared_slots) * kSlot;
      multiply_tiles(product, rows, [from](int tile) { return __ldcg(from + tile * 32); });
    }
  }

  // All 16 bytes of some tiles before the first product: the compiler would load halves of them where each is used, 8
  // bytes every 16, with bank conflicts. Not of all tiles, for which there are no registers.
  template <class P, class Load>
  static FUSEDRNN_DEVICE void multiply_tiles(P& product, const uint4 (&rows)[P::kLoads], const Load& load) {
    constexpr int kTogether = kTiles < 4 ? kTiles : 4;
    static_assert(kTiles % kTogether == 0, "no tile is left over");
#pragma unroll
    for (int first = 0; first < kTiles; first += kTogether) {
      uint4 w[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) w[i] = load(first + i);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) product.multiply(first + i, rows, w[i]);
    }
  }

  template <class T, class Weight>
  static FUSEDRNN_DEVICE uint4 fragment(int tile, int chunk, int chunks, const Weight& weight) {
    Values<T> values;
    const int column = tile * kTileColumns + int(threadIdx.x % 32 / 4);
    const int64_t k = int64_t(chunk) * (kChunkBytes / int(sizeof(T))) + threadIdx.x % 4 * Values<T>::kCount;
#pragma unroll
    for (int i = 0; i < Values<T>::kCount; ++i) values.v[i] = chunk < chunks ? weight(column, k + i) : T(0.0f);
    return values.bits();
  }

  // Loads the rows of some chunks of this warp, from the j-th, until all values are there. Lanes go round together.
  template <class P, class T, int Ahead>
  static FUSEDRNN_DEVICE void await(const P&, uint4 (&rows)[Ahead][P::kLoads], const Exchanged<T>& a, int64_t first,
                                    int64_t end, int j, int chunks) {
    for (;; spin_on()) {
      bool missing = false;
#pragma unroll
      for (int i = 0; i < Ahead; ++i)
#pragma unroll
        for (int l = 0; l < P::kLoads; ++l) rows[i][l] = a.load(first + P::row_of_load(l), end, chunk(j + i), chunks);
#pragma unroll
      for (int i = 0; i < Ahead; ++i)
#pragma unroll
        for (int l = 0; l < P::kLoads; ++l) missing |= unwritten<T>(rows[i][l]);
      if (!__any_sync(~0u, missing)) return;
    }
  }

  template <class P, class T>
  FUSEDRNN_DEVICE void multiply_kept(P& product, const Exchanged<T>& a, int64_t first, int64_t end, int chunks) const {
    constexpr int kAhead = P::kAhead < kKept ? P::kAhead : kKept;
    static_assert(kKept % kAhead == 0, "no chunk is left over");
#pragma unroll
    for (int j = 0; j < kKept; j += kAhead) {
      if (chunk(j) >= chunks) break;
      uint4 rows[kAhead][P::kLoads];
      await(product, rows, a, first, end, j, chunks);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (chunk(j + i) >= chunks) break;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) product.multiply(tile, rows[i], kept[j + i][tile]);
      }
    }
  }
};

}  // namespace cuda
}  // namespace fusedrnn
