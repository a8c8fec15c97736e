// The time loop: how any cell runs over a sequence, forward and backward, on a team of threads.
//
// Work is split in one of two ways. By rows: each thread takes some batch rows through the whole sequence and never
// waits; it reads all of w_hh every step, so w_hh should fit in its cache. By columns: each thread takes some hidden
// units of all rows, keeps its share of w_hh in its cache, and meets the others once a step.
#pragma once
#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "epilogue.h"
#include "pack.h"
#include "team.h"
#include "tile.h"

namespace fusedrnn {
namespace {

using cpu::Backward;
using cpu::Forward;
using cpu::Runner;

constexpr int64_t kCacheBytes = 1 << 20;  // of the second level, per core
constexpr double kWorthAThread = 1e5;     // floating-point operations
constexpr double kWorthABarrier = 3e4;    // the same, per step

template <class T>
constexpr int64_t padded(int64_t H) {
  return panels<T>(H) * kLanes<T>;
}

struct Plan {
  int64_t workers;
  bool by_rows;
};

static Plan make_plan(int64_t B, int64_t steps, int64_t H, int64_t tiles, int64_t gates, int64_t weight_bytes,
                      int64_t threads) {
  const double step = 2.0 * double(B) * double(H) * double(H) * double(gates);
  if (threads <= 1 || step * double(steps) < kWorthAThread) return {1, true};
  const bool fits = weight_bytes <= kCacheBytes;
  if (B >= (fits ? 12 : 32) * threads && (fits || tiles < threads)) return {threads, true};
  if (step >= kWorthABarrier && tiles > 1) return {threads < tiles ? threads : tiles, false};
  if (B > 1) return {threads < B ? threads : B, true};
  return {1, true};
}

// Where a thread works: rows r0..r1, panels t0..t1.
struct Share {
  int64_t r0, r1, t0, t1;
};

// Calls f(share, team) on every worker; team is null when the workers need not meet.
template <class F>
static void run_shares(const Plan& plan, int64_t B, int64_t tiles, const Runner& runner, const F& f) {
  if (plan.workers == 1) {
    f(Share{0, B, 0, tiles}, static_cast<Team*>(nullptr));
    return;
  }
  struct Context {
    const F& f;
    int64_t workers, B, tiles;
    Team team;
  } context{f, plan.workers, B, tiles, Team(plan.workers)};
  if (plan.by_rows) {
    runner.run(
        plan.workers,
        [](void* p, int64_t begin, int64_t end) {
          Context& c = *static_cast<Context*>(p);
          c.f(Share{c.B * begin / c.workers, c.B * end / c.workers, 0, c.tiles}, static_cast<Team*>(nullptr));
        },
        &context);
  } else {
    runner.run(
        plan.workers,
        [](void* p, int64_t begin, int64_t end) {
          Context& c = *static_cast<Context*>(p);
          const int64_t me = c.team.enrol(end - begin);
          if (me < 0) return;
          const int64_t n = c.team.members();
          c.f(Share{0, c.B, c.tiles * me / n, c.tiles * (me + 1) / n}, &c.team);
        },
        &context);
  }
}

// Null stays null: a tensor that a cell does not have is never read.
template <class T>
FUSEDRNN_INLINE T* offset(T* p, int64_t n) {
  return p ? p + n : p;
}

// Copies the part of a [B, H] state that belongs to a share, into a padded buffer or out of it. Null reads as zero, and
// so does the padding, where garbage could be subnormal and slow.
template <class T>
static void copy_state(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t H, const Share& s) {
  const int64_t j0 = s.t0 * kLanes<T>, j1 = s.t1 * kLanes<T> < to_stride ? s.t1 * kLanes<T> : to_stride;
  for (int64_t b = s.r0; b < s.r1; ++b)
    for (int64_t j = j0; j < j1; ++j) to[b * to_stride + j] = from && j < H ? from[b * from_stride + j] : T(0);
}

// Where things are in the workspace of forward, in values.
template <class Cell, class T>
struct ForwardLayout {
  int64_t weights, bias_x, bias_r, h[2], c, size;
  ForwardLayout(int64_t B, int64_t H) {
    const int64_t Hp = padded<T>(H), G = Cell::kGates;
    weights = 0;
    bias_x = weights + G * Hp * H;
    bias_r = bias_x + G * Hp;
    h[0] = bias_r + G * Hp;
    h[1] = h[0] + B * Hp;
    c = h[1] + B * Hp;
    size = c + (Cell::kHasCellState ? B * Hp : 0);
  }
};

template <class Cell, class T>
static void forward(const Forward<T>& a, const Runner& runner) {
  constexpr int64_t G = Cell::kGates, L = kLanes<T>;
  const Sequence& seq = a.sequence;
  const int64_t B = seq.B, H = a.H, Hp = padded<T>(H), tiles = panels<T>(H);
  const ForwardLayout<Cell, T> at(B, H);
  T *const weights = a.workspace + at.weights, *const bias_x = a.workspace + at.bias_x;
  T *const bias_r = a.workspace + at.bias_r, *const c_now = a.workspace + at.c;
  T* const h[2] = {a.workspace + at.h[0], a.workspace + at.h[1]};
  const int64_t weight_bytes = G * Hp * H * int64_t(sizeof(T));
  if (a.first == 0)
    for_each_panel(tiles, weight_bytes > (64 << 10), runner, [&](int64_t t) {
      pack_rows<T, G>(a.w_hh, H, H, H, t, weights + t * H * G * L);
      pack_bias(a.b_ih, G, H, t, bias_x);
      pack_bias(a.b_hh, G, H, t, bias_r);
    });
  const Plan plan = make_plan(B, a.last - a.first, H, tiles, G, weight_bytes, runner.threads);
  run_shares(plan, B, tiles, runner, [&](const Share& s, Team* team) {
    const int64_t stride = seq.batch_stride();
    if (a.first == 0) {
      copy_state(a.h0, H, h[0], Hp, H, s);
      if (Cell::kHasCellState) copy_state(a.c0, H, c_now, Hp, H, s);
      if (team) team->barrier();
    }
    for (int64_t k = a.first; k < a.last; ++k) {
      const int64_t row = seq.row(seq.step(k), 0);
      T* h_prev = h[k & 1];
      ForwardStep<Cell, T> step{H,
                                {a.x + (row - a.x_row0) * a.ldx, stride * a.ldx},
                                bias_x,
                                {h_prev, Hp},
                                {h[(k + 1) & 1], Hp},
                                {c_now, Hp},
                                {a.y + row * H, stride * H},
                                {offset(a.c, row * H), stride * H},
                                a.save};
      sweep<T, G>(Product<T>{h_prev, Hp, weights, H, bias_r}, s.r0, s.r1, s.t0, s.t1, step);
      if (team) team->barrier();
    }
    if (a.last == seq.T) {
      copy_state<T>(h[seq.T & 1], Hp, a.h_n, H, H, s);
      if (Cell::kHasCellState) copy_state<T>(c_now, Hp, a.c_n, H, H, s);
    }
  });
}

template <class Cell, class T>
struct BackwardLayout {
  int64_t weights, direct, dc, size;
  BackwardLayout(int64_t B, int64_t H) {
    const int64_t Hp = padded<T>(H);
    weights = 0;
    direct = weights + Cell::kGates * Hp * H;
    dc = direct + B * Hp;
    size = dc + (Cell::kHasCellState ? B * Hp : 0);
  }
};

// What step k of backward reads and writes. The state before the first step is h0, c0.
template <class Cell, class T>
static BackwardStep<Cell, T> backward_step(const Backward<T>& a, T* direct, T* dc, int64_t k) {
  constexpr int64_t D = Cell::kDeltas;
  const Sequence& seq = a.sequence;
  const int64_t H = a.H, Hp = padded<T>(H), stride = seq.batch_stride() * H, row = seq.row(seq.step(k), 0);
  const int64_t prev = k > 0 ? seq.row(seq.step(k - 1), 0) : 0;
  const auto before = [&](const T* all, const T* start) {
    return k > 0 ? Rows<const T>{offset(all, prev * H), stride} : Rows<const T>{start, H};
  };
  return {H,
          {offset(a.saved, row * a.ld_saved), seq.batch_stride() * a.ld_saved},
          {a.y + row * H, stride},
          before(a.y, a.h0),
          {offset(a.c, row * H), stride},
          before(a.c, a.c0),
          {offset(a.dy, row * H), stride},
          a.dy != nullptr,
          Cell::kKeepsDirect || k == seq.T - 1,
          {a.delta + row * D * H, stride * D},
          {direct, Hp},
          {dc, Hp}};
}

template <class Cell, class T>
static void backward(const Backward<T>& a, const Runner& runner) {
  constexpr int64_t G = Cell::kGates, D = Cell::kDeltas, L = kLanes<T>;
  const Sequence& seq = a.sequence;
  const int64_t B = seq.B, H = a.H, Hp = padded<T>(H), tiles = panels<T>(H), K = G * H;
  const BackwardLayout<Cell, T> at(B, H);
  T *const weights = a.workspace + at.weights, *const direct = a.workspace + at.direct, *const dc = a.workspace + at.dc;
  const int64_t weight_bytes = G * Hp * H * int64_t(sizeof(T));
  for_each_panel(tiles, weight_bytes > (64 << 10), runner,
                 [&](int64_t t) { pack_columns(a.w_hh, H, H, K, t, weights + t * K * L); });
  const Plan plan = make_plan(B, seq.T, H, tiles, G, weight_bytes, runner.threads);
  run_shares(plan, B, tiles, runner, [&](const Share& s, Team* team) {
    copy_state(a.dh_n, H, direct, Hp, H, s);
    if (Cell::kHasCellState) copy_state(a.dc_n, H, dc, Hp, H, s);
    // The recurrent side of the gradients of the step run after step k. After the last step there is none: K = 0.
    const auto product = [&](int64_t k) {
      const bool none = k == seq.T - 1;
      const int64_t row = none ? 0 : seq.row(seq.step(k + 1), 0);
      return Product<T>{a.delta + row * D * H + Cell::kRecurrentDelta * H, seq.batch_stride() * D * H, weights,
                        none ? 0 : K, nullptr};
    };
    for (int64_t k = seq.T - 1; k >= 0; --k) {
      sweep<T, 1>(product(k), s.r0, s.r1, s.t0, s.t1, backward_step<Cell, T>(a, direct, dc, k));
      if (team) team->barrier();
    }
    const StoreStateGrad<T> last{H, {a.dh0, H}, {direct, Hp}, Cell::kKeepsDirect || seq.T == 0};
    sweep<T, 1>(product(-1), s.r0, s.r1, s.t0, s.t1, last);
    if (Cell::kHasCellState) copy_state<T>(dc, Hp, a.dc0, H, H, s);
  });
}

// Eight panels side by side, so that whole cache lines are read row after row.
template <class T>
static void column_sums(const T* a, int64_t rows, int64_t n, T* out, const Runner& runner) {
  constexpr int L = kLanes<T>, kBlock = 32, kWide = 8;
  for_each_panel((n + kWide * L - 1) / (kWide * L), rows * n > (1 << 15), runner, [&](int64_t t) {
    const int64_t column = t * kWide * L;
    Vec<T> total[kWide] = {};
    for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
      const int64_t r1 = r0 + kBlock < rows ? r0 + kBlock : rows;
      Vec<T> part[kWide] = {};
      for (int64_t r = r0; r < r1; ++r) {
        const T* row = a + r * n + column;
        FUSEDRNN_EACH(i, kWide) part[i] += load_up_to(row + i * L, n - column - i * L);
      }
      FUSEDRNN_EACH(i, kWide) total[i] += part[i];
    }
    for (int i = 0; i < kWide; ++i) store_up_to(out + column + i * L, total[i], n - column - i * L);
  });
}

}  // namespace
}  // namespace fusedrnn
