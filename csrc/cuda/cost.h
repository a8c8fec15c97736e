// What a sequence costs by each algorithm, in microseconds: estimates from bytes, products and what waiting takes. No
// GPU has confirmed them. They are there to say which algorithm is faster, and need to be right only where the answer
// is far from even.
#pragma once
#include <algorithm>
#include <cstdint>

#include "block_shape.h"
#include "grid_plan.h"

namespace fusedrnn {
namespace cuda {

// How tensors are stored and multiplied. TF32: float32 tensors, where the caller allows products in TF32.
enum class ValueType { kFloat64, kFloat32, kTf32, kFloat16, kBfloat16 };

// Of a device, by the attributes of the runtime API.
struct Limits {
  int sm_count;
  int shared_bytes;  // per block, for a kernel that asks for more than 48 KiB
  int capability;    // 75, 80, 86, 89, 90, 100, 120
  bool cooperative;  // it launches cooperatively
};

// What is asked: one direction of one layer, forward or backward.
struct Asked {
  bool backward;
  int gates;
  ValueType type;
  int64_t T, B, H;

  int type_bytes() const { return type == ValueType::kFloat64 ? 8 : type <= ValueType::kTf32 ? 4 : 2; }
  int64_t columns() const { return backward ? H : gates * H; }  // of the product, in which each row of the batch sums
  int64_t depth() const { return backward ? gates * H : H; }    // so many values
};

// In a microsecond, of one multiprocessor at 1.5 GHz: bytes of shared memory and of L2, which all share.
constexpr double kSharedRate = 128 * 1500, kL2Rate = 40e3;
// A launch; the two launches of a step, one of them by cuBLAS, of which the host makes no more; a barrier of the grid;
// what a pass of grid waits for (rows from L2, two barriers of the block, gate math), and a step of block likewise.
constexpr double kLaunch = 4, kTwoLaunches = 8, kGridBarrier = 1.5, kGridPass = 1, kBlockStep = 0.7;

// As multiplies_on_tensor_cores of grid_product.cuh, for kernels that were compiled for this device.
inline bool tensor_cores(ValueType type, int capability) {
  if (type == ValueType::kFloat16) return true;
  return capability >= 80 && (type == ValueType::kTf32 || type == ValueType::kBfloat16);
}

// Multiply-adds in a microsecond of one multiprocessor, half of what it could do at most.
inline double multiply_rate(ValueType type, int capability, bool on_tensor_cores) {
  const bool data_center = capability == 80 || capability == 90 || capability == 100;
  double a_clock = capability < 86 ? 64 : 128;
  if (type == ValueType::kFloat64) a_clock = data_center ? 32 : 2;
  if (on_tensor_cores) a_clock = (data_center ? 1024 : 512) / (type == ValueType::kTf32 ? 2 : 1);
  return a_clock * 1500 / 2;
}

// A GEMM, which reads w_hh from L2, and the product that it leaves there for the pointwise kernel.
inline double step_cost(const Asked& a, const Limits& limits) {
  const double rate = multiply_rate(a.type, limits.capability, tensor_cores(a.type, limits.capability));
  const double multiplied = double(a.B) * double(a.columns()) * double(a.depth()) / rate;
  const double bytes = double(a.columns()) * double(a.depth()) * a.type_bytes() + 8.0 * double(a.B * a.columns());
  return double(a.T) * (kTwoLaunches + (multiplied + bytes / kL2Rate) / limits.sm_count);
}

// Each group of threads reads w_hh from shared memory once for its rows, and each warp what it multiplies with.
inline double block_cost(const Asked& a, const Limits& limits, const BlockShape& s) {
  const double w_hh = double(block_weights(a.backward, a.gates, a.type_bytes(), a.H)) * a.type_bytes();
  const double operand = s.rows() * (block_units(a.H) / 32) * double(a.depth()) / 4 * 128;
  const double multiplied = s.rows() * double(block_units(a.H)) * (double(a.columns()) / double(a.H)) *
                            double(a.depth()) / multiply_rate(ValueType::kFloat32, limits.capability, false);
  const double step = kBlockStep + std::max((s.groups * w_hh + operand) / kSharedRate, multiplied);
  const double waves = double(divide_up(divide_up(a.B, s.rows()), limits.sm_count));
  return kLaunch + waves * (w_hh / kL2Rate + double(a.T) * step);
}

// In each pass a block reads all rows from L2 once for each group of tiles, multiplies by all of its weights, and reads
// those that are not in registers, once for 16 rows on tensor cores and once for four else.
inline double grid_cost(const Asked& a, const Limits& limits, const GridPlan& plan) {
  const bool tensors = tensor_cores(a.type, limits.capability);
  const int tiles = plan.wide ? GridWide::kTiles : GridNarrow::kTiles, warps = GridWide::kWarps;
  const double slot_bytes = double(warps) * tiles * kFragmentBytes, K = double(plan.chunks) * kChunkBytes;
  const double columns = double(plan.groups) * tiles * kTileColumns,
               rate = multiply_rate(a.type, limits.capability, tensors);
  const int rows = pass_rows(a.B), taken = tensors ? kPassRows : rows, times = tensors ? 1 : int(divide_up(rows, 4));
  const double shared = times * plan.shared_slots * slot_bytes / kSharedRate;
  const double streamed = times * (plan.slots - plan.shared_slots) * slot_bytes / kL2Rate;
  const double pass =
      kGridPass + rows * K * plan.groups / kL2Rate + shared + streamed + taken * columns * (K / a.type_bytes()) / rate;
  const double step = kGridBarrier + double(divide_up(a.B, kPassRows)) * pass;
  const double w_hh = columns * K;
  return kLaunch + kGridBarrier + 2 * w_hh / kL2Rate + double(a.T) * step;
}

}  // namespace cuda
}  // namespace fusedrnn
