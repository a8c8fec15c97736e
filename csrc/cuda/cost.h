// What a sequence costs by each algorithm, in microseconds: estimates from bytes, products and what waiting takes,
// whose constants are fitted to times of an H100 (grid: 300 plans of LSTM, GRU and RNN, 6 % off on average, 30 % at
// most). Other GPUs have not been measured: of theirs only the products are known. They are there to say what is
// faster, and need to be right only where the answer is far from even.
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
// A launch; the two launches of a step, one of them by cuBLAS, of which a host makes no more (8 on a fast one, 16 on a
// slow one).
constexpr double kLaunch = 4, kTwoLaunches = 12;

// What a step of block takes besides the products, and what these take longer than they could where each value has to
// be widened first.
struct BlockTimes {
  double step, float32, half;
};
constexpr BlockTimes kBlockForward{0.9, 1, 2.3}, kBlockBackward{1.4, 1.2, 3.2};

// What grid waits for: the exchange of a step, a pass of 16 rows (barriers, latencies), each round of loads of rows
// that are on their way together, each round of gate math; then microseconds a million multiply-adds, and 100 kB of
// weights from shared memory and from L2, of rows, and of partial sums.
struct GridTimes {
  double step, pass, round, gates, multiply, shared, streamed, rows, sums;
};
constexpr GridTimes kGridForward{0.5, 0.75, 0.67, 0.55, 0.1, 0.23, 0.7, 1.3, 0.9},
    kGridBackward{0.35, 1.3, 0.35, 1.13, 0.7, 0.47, 0.41, 1.6, 0},
    kGridForwardFma{1, 0.63, 0.28, 0.3, 12.5, 0.1, 0.9, 18, 4},
    kGridBackwardFma{2.2, 0.1, 0.55, 0.1, 10.6, 0.42, 1, 10.5, 0.5};

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
  const BlockTimes& takes = a.backward ? kBlockBackward : kBlockForward;
  const double w_hh = double(block_weights(a.backward, a.gates, a.type_bytes(), a.H)) * a.type_bytes();
  const double operand = s.rows() * (block_units(a.H) / 32) * double(a.depth()) / 4 * 128;
  const double multiplied = s.rows() * double(block_units(a.H)) * (double(a.columns()) / double(a.H)) *
                            double(a.depth()) / multiply_rate(ValueType::kFloat32, limits.capability, false);
  const double longer = a.type_bytes() == 4 ? takes.float32 : takes.half;
  const double step = takes.step + std::max((s.groups * w_hh + operand) / kSharedRate, longer * multiplied);
  const double waves = double(divide_up(divide_up(a.B, s.rows()), limits.sm_count));
  return kLaunch + waves * (w_hh / kL2Rate + double(a.T) * step);
}

// In each pass a block reads its rows from L2 once for each group of tiles and multiplies by all of its weights; it
// reads those that are not in registers once for 16 rows on tensor cores and once for four else.
template <class Shape>
double grid_cost(const Asked& a, const Limits& limits, const GridPlan& plan) {
  const bool tensors = tensor_cores(a.type, limits.capability);
  const GridTimes& takes =
      tensors ? (a.backward ? kGridBackward : kGridForward) : (a.backward ? kGridBackwardFma : kGridForwardFma);
  const int rows = pass_rows(plan.rows), times = tensors ? 1 : int(divide_up(rows, 4));
  const int ahead = tensors ? Shape::kRegisterChunks : 2, ahead_of_slots = tensors ? 3 : 2;  // as grid_product.cuh
  const int own = int(divide_up(plan.chunks, Shape::kWarps)), kept = std::min(own, Shape::kRegisterChunks);
  const double rounds = times * double(divide_up(kept, ahead) + divide_up(own - kept, ahead_of_slots) +
                                       (plan.groups - 1) * divide_up(own, ahead_of_slots));
  const double slot = double(Shape::kWarps) * Shape::kTiles * kFragmentBytes / 1e5, K = plan.chunks * kChunkBytes,
               columns = double(plan.groups) * Shape::kTiles * kTileColumns;
  const double multiplied = (tensors ? kPassRows : times * std::min(rows, 4)) * columns * K / a.type_bytes() / 1e6,
               slower = multiply_rate(a.type, 90, tensors) / multiply_rate(a.type, limits.capability, tensors);
  const double pass = takes.pass + takes.round * rounds +
                      takes.gates * double(divide_up(int64_t(rows) * plan.units, Shape::kWarps * 32)) +
                      takes.multiply * multiplied * slower + takes.shared * times * plan.shared_slots * slot +
                      takes.streamed * times * (plan.slots - plan.shared_slots) * slot +
                      takes.rows * rows * K * plan.groups / 1e5 + takes.sums * rows * columns * Shape::kWarps * 4 / 1e5;
  const double step = takes.step + double(divide_up(plan.rows, kPassRows)) * pass;
  return kLaunch + 2 * columns * K / kL2Rate + double(a.T) * step;
}

}  // namespace cuda
}  // namespace fusedrnn
