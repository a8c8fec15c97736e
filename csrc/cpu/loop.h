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
#include "few.h"
#include "team.h"

namespace fusedrnn {
namespace {

using cpu::Backward;
using cpu::Forward;
using cpu::Projection;
using cpu::Recompute;

constexpr int64_t kCacheBytes = 1 << 20;  // of the second level, per core
constexpr double kWorthAThread = 3e5;     // floating-point operations
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

template <class Cell, class T>
static Plan plan_of(int64_t B, int64_t steps, int64_t H, const Runner& runner) {
  const int64_t weight_bytes = Cell::kGates * padded<T>(H) * H * int64_t(sizeof(T));
  return make_plan(B, steps, H, panels<T>(H), Cell::kGates, weight_bytes, runner.threads);
}

// Where a thread works: rows r0..r1, panels t0..t1.
struct Share {
  int64_t r0, r1, t0, t1;
  // Its part of some rows.
  Share of(int64_t begin, int64_t end) const { return {r0 > begin ? r0 : begin, r1 < end ? r1 : end, t0, t1}; }
};

// The steps of a call, in the order of running.
struct Span {
  Sequence seq;
  int64_t first, last;

  int64_t steps() const { return last - first; }
  int64_t t0() const { return seq.reverse ? seq.T - last : first; }
  int64_t t1() const { return seq.reverse ? seq.T - first : last; }
  int64_t rows() const { return seq.before(t1()) - seq.before(t0()); }
  // Of each step, in the mean.
  int64_t rows_of_step() const { return steps() > 0 ? (rows() + steps() - 1) / steps() : seq.B; }

  // The first entry of share i of n. Shares have the same number of rows over all steps; the first entries have most.
  int64_t cut(int64_t i, int64_t n) const {
    if (!seq.offsets || i == n) return seq.B * i / n;
    int64_t b = 0, done = 0, t = t1();
    for (; done * n < rows() * i; ++b, done += t - t0())
      while (t > t0() && seq.rows(t - 1) <= b) --t;
    return b;
  }
};

static Share share_of(const Plan& plan, const Span& span, int64_t tiles, int64_t i, int64_t n) {
  return plan.by_rows ? Share{span.cut(i, n), span.cut(i + 1, n), 0, tiles}
                      : Share{0, span.seq.B, tiles * i / n, tiles * (i + 1) / n};
}

// Calls f(share, team) on every worker; team is null when the workers need not meet.
template <class F>
static void run_shares(const Plan& plan, const Span& span, int64_t tiles, const Runner& runner, const F& f) {
  if (plan.workers == 1) {
    f(Share{0, span.seq.B, 0, tiles}, static_cast<Team*>(nullptr));
    return;
  }
  struct Context {
    const F& f;
    const Plan& plan;
    const Span& span;
    int64_t tiles;
    Team team;
  } context{f, plan, span, tiles, Team(plan.workers)};
  if (plan.by_rows) {
    runner.run(
        plan.workers,
        [](void* p, int64_t begin, int64_t end) {
          Context& c = *static_cast<Context*>(p);
          for (int64_t i = begin; i < end; ++i)
            c.f(share_of(c.plan, c.span, c.tiles, i, c.plan.workers), static_cast<Team*>(nullptr));
        },
        &context);
  } else {
    runner.run(
        plan.workers,
        [](void* p, int64_t begin, int64_t end) {
          Context& c = *static_cast<Context*>(p);
          const int64_t me = c.team.enrol(end - begin);
          if (me < 0) return;
          // Where nobody is missing everyone has the same share in every call, and finds it in its cache.
          const int64_t n = c.team.members();
          c.f(share_of(c.plan, c.span, c.tiles, n == c.plan.workers ? begin : me, n), &c.team);
        },
        &context);
  }
}

// Copies the part of a [B, H] state that belongs to a share, into a padded buffer or out of it. Null reads as zero, and
// so does the padding, where garbage could be subnormal and slow.
template <class T>
static void copy_state(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t H, const Share& s) {
  constexpr int64_t L = kLanes<T>;
  const int64_t j0 = s.t0 * L, j1 = s.t1 * L < to_stride ? s.t1 * L : to_stride;
  for (int64_t b = s.r0; b < s.r1; ++b)
    for (int64_t j = j0; j < j1; j += L)
      store_up_to(to + b * to_stride + j, from ? load_up_to(from + b * from_stride + j, H - j) : Vec<T>{}, j1 - j);
}

template <class T>
static void clear_state(T* state, int64_t stride, const Share& s) {
  copy_state<T>(nullptr, 0, state, stride, 0, s);
}

// f(entry) for the entries of a share whose states are zeroed before step t.
template <class F>
static void each_reset(const Sequence& seq, const Steps<const uint8_t>& resets, int64_t t, const Share& s, const F& f) {
  if (!resets) return;
  const uint8_t* of_step = seq.at(resets, t);
  for (int64_t b = s.r0; b < s.r1; ++b)
    if (of_step[b * resets.row]) f(Share{b, b + 1, s.t0, s.t1});
}

template <class P, class T>
FUSEDRNN_INLINE Rows<P> rows_of(const Sequence& seq, const Steps<T>& all, int64_t t) {
  return {all ? seq.at(all, t) : nullptr, all.row};
}

// Where the states of forward are: h in two buffers that take turns, c in one.
template <class Cell, class T>
struct ForwardStates {
  static int64_t size(int64_t B, int64_t H) { return (Cell::kHasCellState ? 3 : 2) * B * padded<T>(H); }
  T *h[2], *c;
  ForwardStates(T* p, int64_t B, int64_t H)
      : h{p, p + B * padded<T>(H)}, c(Cell::kHasCellState ? h[1] + B * padded<T>(H) : nullptr) {}
};

// Asks for what other threads wrote of a state, all lines at once: one after the other, as the tiles come to them, they
// take longer.
template <class T>
static void fetch_others(const T* state, int64_t B, int64_t stride, const Share& s) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t b = 0; b < B; ++b, state += stride) {
    for (int64_t j = 0; j < s.t0 * kLanes<T>; j += kLine) __builtin_prefetch(state + j, 0, 2);
    for (int64_t j = s.t1 * kLanes<T>; j < stride; j += kLine) __builtin_prefetch(state + j, 0, 2);
  }
}

// Rows of the left factor and of the result, some of each step; one block where they are evenly spaced over the steps.
template <class T>
struct StepRows {
  int64_t blocks, rows;
  Steps<const T> from;
  Steps<T> to;
  StepRows(const Projection<T>& a, const Share& s)
      : blocks(a.t1 - a.t0),
        rows(s.r1 - s.r0),
        from{a.x.at(a.t0, s.r0), a.x.step, a.x.row},
        to{a.to.at(a.t0, s.r0), a.to.step, a.to.row} {
    if (a.B == 1) from.row = from.step, to.row = to.step;
    const bool even = from.step == a.B * from.row && to.step == a.B * to.row;
    if (rows == a.B && even) rows *= blocks, blocks = 1;
  }
};

// As many rows at a time as stay in the second-level cache while all panels of the share pass.
template <class Cell, class T>
static void project_share(const Projection<T>& a, const Share& s) {
  constexpr int G = Cell::kGates;
  constexpr int64_t kUnits = kVectorsAtATime / G > 1 ? kVectorsAtATime / G : 1;
  const StepRows<T> all(a, s);
  const Blocks parts(0, all.blocks * all.rows, rows_in_cache<T>(a.I));
  const auto sweep_block = [&](int64_t block, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
    const auto p = packed_product<T, G>(all.from.at(block), all.from.row, a.weights, a.I, nullptr);
    const StoreProduct<T, G> store{{all.to.at(block), all.to.row}, a.H, false};
    sweep<T, G>(p, r0, r1, t0, t1, store);
  };
  for (int64_t i = 0; i < parts.count; ++i) {
    if (all.blocks == 1) {
      sweep_block(0, parts.begin(i), parts.begin(i + 1), s.t0, s.t1);
      continue;
    }
    // Whole blocks: those that begin in this part.
    const int64_t b0 = (parts.begin(i) + all.rows - 1) / all.rows, b1 = (parts.begin(i + 1) + all.rows - 1) / all.rows;
    for (int64_t t = s.t0; t < s.t1; t += kUnits)
      for (int64_t b = b0; b < b1; ++b) sweep_block(b, 0, all.rows, t, t + kUnits < s.t1 ? t + kUnits : s.t1);
  }
}

template <class Cell, class T>
static void project(const Projection<T>& a, const Runner& runner) {
  const Plan plan = plan_of<Cell, T>(a.B, a.t1 - a.t0, a.H, runner);
  const Span span{{a.t1 - a.t0, a.B, false, nullptr}, 0, a.t1 - a.t0};
  for_each(plan.workers, plan.workers > 1, runner,
           [&](int64_t i) { project_share<Cell>(a, share_of(plan, span, panels<T>(a.H), i, plan.workers)); });
}

template <class Cell, class T>
static void forward(const Forward<T>& a, const Runner& runner) {
  constexpr int64_t G = Cell::kGates;
  const Sequence& seq = a.seq;
  const int64_t B = seq.B, H = a.H, Hp = padded<T>(H), tiles = panels<T>(H);
  const ForwardStates<Cell, T> at(a.states, B, H);
  const Span span{seq, a.first, a.last};
  const Plan plan = plan_of<Cell, T>(span.rows_of_step(), span.steps(), H, runner);
  run_shares(plan, span, tiles, runner, [&](const Share& s, Team* team) {
    const auto leave = [&](const T* h, int64_t begin, int64_t end) {
      copy_state<T>(h, Hp, a.h_n, H, H, s.of(begin, end));
      if (Cell::kHasCellState) copy_state<T>(at.c, Hp, a.c_n, H, H, s.of(begin, end));
    };
    const auto reset = [&](T* h, int64_t k) {
      if (k == seq.T) return;
      each_reset(seq, a.resets, seq.step(k), s.of(0, seq.rows_of_turn(k)), [&](const Share& entry) {
        clear_state(h, Hp, entry);
        if (Cell::kHasCellState) clear_state(at.c, Hp, entry);
      });
    };
    if (a.first == 0) {
      copy_state(a.h0, H, at.h[0], Hp, H, s);
      if (seq.offsets && seq.reverse) copy_state(a.h0, H, at.h[1], Hp, H, s);  // entries begin with any step
      if (Cell::kHasCellState) copy_state(a.c0, H, at.c, Hp, H, s);
      leave(at.h[0], seq.entries(), B);
      reset(at.h[0], 0);
      if (team) team->barrier();
    }
    for (int64_t k = a.first; k < a.last; ++k) {
      const int64_t t = seq.step(k), rows = seq.rows(t);
      const Share now = s.of(0, rows);
      if (team && k > a.first) fetch_others(at.h[k & 1], rows, Hp, s);
      T *const before = at.h[k & 1], *const after = at.h[(k + 1) & 1];
      const ForwardStep<Cell, T> step{H,
                                      a.tokens ? Rows<const T>{a.x.p, a.x.row} : rows_of<const T>(seq, a.x, t),
                                      rows_of<const int64_t>(seq, a.tokens, t),
                                      a.b_ih,
                                      {before, Hp},
                                      {at.c, Hp},
                                      {after, Hp},
                                      {at.c, Hp},
                                      rows_of<T>(seq, a.y, t),
                                      rows_of<T>(seq, a.c, t),
                                      rows_of<T>(seq, a.saved, t)};
      if (a.weights)
        sweep<T, G>(packed_product<T, G>(before, Hp, a.weights, H, a.b_hh), now.r0, now.r1, s.t0, s.t1, step);
      else
        sweep_few<T, G>(before, Hp, a.w_hh, a.b_hh, now.r0, now.r1, s.t0, s.t1, step);
      leave(after, seq.rows_of_turn(k + 1), rows);
      reset(after, k + 1);
      if (team) team->barrier();
    }
  });
}

template <class Cell, class T>
static void recompute(const Recompute<T>& a, const Runner& runner) {
  constexpr int64_t G = Cell::kGates;
  const ForwardStep<Cell, T> step{a.H, {a.x, a.ldx}, {}, a.b_ih, {a.h, a.ldh}, {a.c, a.ldh},
                                  {},  {},           {}, {},     {a.x, a.ldx}};
  const int64_t shares = a.rows < runner.threads ? a.rows : runner.threads;
  for_each(shares, true, runner, [&](int64_t s) {
    const Blocks parts(a.rows * s / shares, a.rows * (s + 1) / shares, rows_in_cache<T>(a.H));
    for (int64_t i = 0; i < parts.count; ++i)
      sweep<T, G>(packed_product<T, G>(a.h, a.ldh, a.weights, a.H, a.b_hh), parts.begin(i), parts.begin(i + 1), 0,
                  panels<T>(a.H), step);
  });
}

// Where the states of backward are: the part of dh that does not pass w_hh, and dc. And for few rows the last panel of
// w_hh, which cannot be read in place: its vectors would reach beyond the end.
template <class Cell, class T>
struct BackwardStates {
  static int64_t size(int64_t B, int64_t H) {
    return (Cell::kHasCellState ? 2 : 1) * B * padded<T>(H) + Cell::kGates * H * kLanes<T>;
  }
  T *tail, *direct, *dc;
  BackwardStates(T* p, int64_t B, int64_t H)
      : tail(p),
        direct(p + Cell::kGates * H * kLanes<T>),
        dc(Cell::kHasCellState ? direct + B * padded<T>(H) : nullptr) {}
};

// What step k of backward reads and writes. `gradient` says that the next step sends one back, and `direct` that there
// is one that does not pass w_hh.
template <class Cell, class T>
static BackwardStep<Cell, T> backward_step(const Backward<T>& a, const BackwardStates<Cell, T>& at, int64_t k,
                                           bool gradient, bool direct) {
  const Sequence& seq = a.seq;
  const int64_t H = a.H, Hp = padded<T>(H), t = seq.step(k);
  return {H,
          rows_of<const T>(seq, a.saved, t),
          rows_of<const T>(seq, a.y, t),
          rows_of<const T>(seq, a.h_before, t),
          rows_of<const T>(seq, a.c, t),
          rows_of<const T>(seq, a.c_before, t),
          rows_of<const T>(seq, a.dy, t),
          rows_of<const T>(seq, a.dc, t),
          gradient && a.resets ? rows_of<const uint8_t>(seq, a.resets, seq.step(k + 1)) : Rows<const uint8_t>{},
          direct,
          rows_of<T>(seq, a.delta, t),
          {at.direct, Hp},
          {at.dc, Hp}};
}

// epilogue(rows, panels) with zeros.
template <class T, class Epilogue>
static void no_gradient(const T* any, const Share& s, const Epilogue& epilogue) {
  sweep<T, 1>(packed_product<T, 1>(nullptr, 0, any, 0, nullptr), s.r0, s.r1, s.t0, s.t1, epilogue);
}

// epilogue(rows, panels) with the part of dh that step k + 1 sends through w_hh.
template <class Cell, class T, class Epilogue>
static void recurrent_gradient(const Backward<T>& a, const T* tail, int64_t k, const Share& s,
                               const Epilogue& epilogue) {
  const int64_t K = Cell::kGates * a.H, full = a.H / kLanes<T>;
  const T* delta = a.seq.at(a.delta, a.seq.step(k + 1)) + Cell::kRecurrentDelta * a.H;
  if (a.weights) {
    const auto p = packed_product<T, 1>(delta, a.delta.row, a.weights, K, nullptr);
    return sweep<T, 1>(p, s.r0, s.r1, s.t0, s.t1, epilogue);
  }
  const Product<T> p{delta, a.delta.row, static_cast<const T*>(a.w_hh.p), a.w_hh.k_stride, kLanes<T>, K, nullptr, 0};
  sweep<T, 1>(p, s.r0, s.r1, s.t0, s.t1 < full ? s.t1 : full, epilogue);
  if (s.t1 <= full) return;
  auto last = packed_product<T, 1>(delta, a.delta.row, tail, K, nullptr);
  last.weights -= full * last.stream;
  sweep<T, 1>(last, s.r0, s.r1, full, s.t1, epilogue);
}

// The gradients that reach the beginning of a sequence, for the entries of a share that step k + 1 began with.
template <class Cell, class T>
static void gradient_of_start(const Backward<T>& a, const BackwardStates<Cell, T>& at, int64_t k, const Share& s) {
  const int64_t H = a.H, Hp = padded<T>(H);
  if (!a.dh0 || s.r0 >= s.r1) return;
  if (Cell::kKeepsDirect) copy_state<T>(at.direct, Hp, a.dh0, H, H, s);
  recurrent_gradient<Cell>(a, at.tail, k, s, StoreProduct<T>{{a.dh0, H}, H, Cell::kKeepsDirect});
  each_reset(a.seq, a.resets, a.seq.step(k + 1), s, [&](const Share& entry) { clear_state(a.dh0, H, entry); });
  if (Cell::kHasCellState) copy_state<T>(at.dc, Hp, a.dc0, H, H, s);
}

template <class Cell, class T>
static void backward(const Backward<T>& a, const Runner& runner) {
  constexpr int64_t G = Cell::kGates, L = kLanes<T>;
  const Sequence& seq = a.seq;
  const int64_t B = seq.B, H = a.H, Hp = padded<T>(H), tiles = panels<T>(H);
  const BackwardStates<Cell, T> at(a.states, B, H);
  if (!a.weights && H % L && a.last == seq.T)
    pack_columns(static_cast<const T*>(a.w_hh.p) + H / L * L, a.w_hh.k_stride, G * H, H % L, at.tail, 0);
  const Span span{seq, a.first, a.last};
  const Plan plan = plan_of<Cell, T>(span.rows_of_step(), span.steps(), H, runner);
  run_shares(plan, span, tiles, runner, [&](const Share& s, Team* team) {
    if (a.last == seq.T) {
      copy_state(a.dh_n, H, at.direct, Hp, H, s);
      if (Cell::kHasCellState) copy_state(a.dc_n, H, at.dc, Hp, H, s);
      const Share idle = s.of(seq.entries(), B);
      if (a.dh0) copy_state<T>(at.direct, Hp, a.dh0, H, H, idle);
      if (Cell::kHasCellState && a.dc0) copy_state<T>(at.dc, Hp, a.dc0, H, H, idle);
    }
    const auto forget = [&](const Share& entries) {
      if (Cell::kKeepsDirect) clear_state(at.direct, Hp, entries);
      if (Cell::kHasCellState) clear_state(at.dc, Hp, entries);
    };
    for (int64_t k = a.last - 1; k >= a.first; --k) {
      // Entries that both steps have, and those whose last step, in the order of running, this is.
      const int64_t rows = seq.rows_of_turn(k), next = seq.rows_of_turn(k + 1);
      const Share going = s.of(0, rows < next ? rows : next), ending = s.of(next, rows);
      const bool detached = a.detach_every > 0 && (k + 1) % a.detach_every == 0;
      if (detached)
        forget(s.of(0, next));
      else if (next > 0)
        each_reset(seq, a.resets, seq.step(k + 1), s.of(0, next), forget);
      const auto step = backward_step(a, at, k, next > 0 && !detached, Cell::kKeepsDirect);
      if (detached)
        no_gradient<T>(at.tail, going, step);
      else if (going.r0 < going.r1)
        recurrent_gradient<Cell>(a, at.tail, k, going, step);
      no_gradient<T>(at.tail, ending, backward_step(a, at, k, false, true));
      gradient_of_start(a, at, k, s.of(rows, next));
      if (team) team->barrier();
    }
    if (a.first > 0 || seq.T == 0) return;
    each_reset(seq, a.resets, seq.step(0), s.of(0, seq.rows_of_turn(0)), forget);
    gradient_of_start(a, at, -1, s.of(0, seq.rows_of_turn(0)));
  });
}

}  // namespace
}  // namespace fusedrnn
