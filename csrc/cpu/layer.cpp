// The sequence is worked on in chunks of steps: what is computed for a chunk is still in the caches when it is used,
// and memory does not grow with the sequence. Within a chunk everything is float or double with time first; tensors
// that are stored so are used where they are, the others pass through a buffer of the chunk.
#include "layer.h"

#include <algorithm>
#include <chrono>

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"

namespace fusedrnn {
namespace cpu {

thread_local Phases phases;

namespace {

// Adds the time of its scope to a phase.
class Timed {
 public:
  explicit Timed(Phase phase) : phase_(phase), start_(phases.on ? now() : 0) {}
  ~Timed() {
    if (phases.on) phases.ns[phase_] += now() - start_;
  }

 private:
  static int64_t now() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }
  const Phase phase_;
  const int64_t start_;
};

// Forward: input projections of a chunk take this much per thread, but no fewer rows than repay reading w_ih.
constexpr int64_t kChunkBytes = 1 << 20, kChunkRows = 256;
// Backward: rows of a chunk. Each chunk adds to the weight gradients, which must repay reading and writing them.
constexpr int64_t kGradientRows = 1024;
// Rows that do not repay packing the weights, in one step and in a whole sequence.
constexpr int64_t kFewRows = 2, kFewInAll = 8;

struct Chunk {
  int64_t k0, k1, t0, t1;  // in the order of running, and in time
  int64_t steps() const { return k1 - k0; }
};

template <class Cell, class T>
class Pass {
 protected:
  static constexpr int64_t G = Cell::kGates;

  const Kernels<T>& k;
  const Runner& runner;
  const Arena& arena;
  const bool native;

  Pass(const Layer& a, const Kernels<T>& k, const Runner& runner, const Arena& arena)
      : k(k), runner(runner), arena(arena), native(a.type == kTypeOf<T>) {}

  static bool few_rows(const Layer& a) { return a.B <= kFewRows && a.T * a.B <= kFewInAll; }

  Chunk chunk(const Layer& a, int64_t k0, int64_t k1) const {
    return {k0, k1, a.reverse ? a.T - k1 : k0, a.reverse ? a.T - k0 : k1};
  }

  // [rows, columns] of the user's as T.
  const T* dense(const void* p, Type type, int64_t rows, int64_t columns) const {
    if (native || !p) return static_cast<const T*>(p);
    T* to = arena.take<T>(rows * columns);
    convert(p, type, to, kTypeOf<T>, rows, columns);
    return to;
  }
  void convert(const void* from, Type from_type, void* to, Type to_type, int64_t rows, int64_t columns) const {
    const Timed timed(kCopy);
    k.copy({const_cast<void*>(from), from_type, 0, columns}, {to, to_type, 0, columns}, 0, 1, rows, columns, runner);
  }
  // Where a result [rows, columns] is written, before finish() converts it.
  T* result(void* p, int64_t rows, int64_t columns) const {
    return native || !p ? static_cast<T*>(p) : arena.take<T>(rows * columns);
  }
  void finish(const T* from, void* to, Type type, int64_t rows, int64_t columns) const {
    if (!native && to) convert(from, kTypeOf<T>, to, type, rows, columns);
  }

  T* packed(const Factor& f) const {
    const Timed timed(kPack);
    T* p = arena.take<T>(k.packed_size(f.G, f.N, f.K));
    k.pack(f, p, runner);
    return p;
  }
  T* packed_bias(const void* bias, const Layer& a) const {
    const Timed timed(kPack);
    T* p = arena.take<T>(k.packed_size(G, a.H, 1));
    k.pack_bias(bias, a.type, G, a.H, p);
    return p;
  }
  void multiply(int64_t M, int64_t N, int64_t K, const T* A, int64_t lda, const T* b, T* c, int64_t ldc) const {
    k.product({M, N, K, A, lda, b, c, ldc}, runner);
  }

  // A buffer for the rows of some steps, of which the step at time t0 comes first.
  static Stored buffer(T* p, int64_t t0, int64_t B, int64_t columns) {
    return {p - t0 * B * columns, kTypeOf<T>, B * columns, columns};
  }
  // Rows of steps t0 to t1 as T with time first: where they are, or copied to `room`.
  Steps<const T> staged(const Stored& s, int64_t t0, int64_t t1, int64_t B, int64_t columns, T* room) const {
    if (!s.p || !room) return s.as<const T>();
    const Stored to = buffer(room, t0, B, columns);
    const Timed timed(kCopy);
    k.copy(s, to, t0, t1, B, columns, runner);
    return to.as<const T>();
  }
  // Room for staged(), or null where it is not needed. Kernels can read rows of any stride; `any_layout` says that only
  // they do.
  T* room(const Stored& s, int64_t steps, int64_t B, int64_t columns, bool any_layout) const {
    const bool in_place = native && (any_layout || (s.row == columns && s.step == B * columns));
    return in_place || !s.p ? nullptr : arena.take<T>(steps * B * columns);
  }
};

template <class Cell, class T>
constexpr int64_t slots = Cell::kSaved > Cell::kGates ? Cell::kSaved : Cell::kGates;

// ------------------------------------------------------------------------------------------------ forward

template <class Cell, class T>
class ForwardPass : Pass<Cell, T> {
  using P = Pass<Cell, T>;
  using P::G, P::k, P::runner, P::arena, P::native;
  const LayerForward& a;
  const int64_t gates = G * a.H;
  T* w_ih = nullptr;  // packed
  T *x_room = nullptr, *gate_room = nullptr, *y_room, *saved_room = nullptr, *c_room;
  int64_t steps;  // of a chunk
  Forward<T> f{};

  // The projections of a chunk go over what is saved for backward or over y, where those have the same form, or into a
  // buffer of the chunk.
  bool in_saved() const { return native && a.saved.p && !a.tokens; }
  bool in_y() const { return native && G == 1 && !a.tokens && a.y.row == a.H && a.y.step == a.B * a.H; }

 public:
  ForwardPass(const LayerForward& a, const Kernels<T>& k, const Runner& runner, const Arena& arena)
      : P(a, k, runner, arena), a(a) {
    const int64_t step_bytes = std::max<int64_t>(1, a.B * gates * int64_t(sizeof(T)));
    const int64_t least = (kChunkRows + a.B) / std::max<int64_t>(1, a.B);
    const int64_t fitting = std::max(least, kChunkBytes * runner.threads / step_bytes);
    const int64_t chunks = std::max<int64_t>(1, (a.T + fitting - 1) / fitting);
    steps = (a.T + chunks - 1) / chunks;
    if (!a.tokens) {
      x_room = P::room(a.x, steps, a.B, a.I, !P::few_rows(a));
      if (!in_saved() && !in_y()) gate_room = arena.template take<T>(steps * a.B * slots<Cell, T> * a.H);
    }
    y_room = P::room(a.y, steps, a.B, a.H, true);
    c_room = P::room(a.c, steps, a.B, a.H, true);
    if (a.saved.p && !native) saved_room = arena.template take<T>(steps * a.B * Cell::kSaved * a.H);
  }

  void run() {
    const Factor recurrent{a.w_hh, a.type, G, a.H, a.H, a.H, 1};
    const bool few = P::few_rows(a);
    f.steps = a.T, f.B = a.B, f.H = a.H, f.reverse = a.reverse;
    f.h0 = P::dense(a.h0, a.type, a.B, a.H), f.c0 = P::dense(a.c0, a.type, a.B, a.H);
    f.h_n = P::result(a.h_n, a.B, a.H), f.c_n = P::result(a.c_n, a.B, a.H);
    f.b_ih = P::packed_bias(a.b_ih, a), f.b_hh = P::packed_bias(a.b_hh, a);
    f.w_hh = recurrent, f.weights = few ? nullptr : P::packed(recurrent);
    f.states = arena.template take<T>(k.forward_states(a.kind, a.B, a.H));
    if (a.tokens)
      project_table();
    else if (!few)
      w_ih = P::packed({a.w_ih, a.type, G, a.H, a.I, a.I, 1});
    // At least once: a sequence of no steps hands the states through.
    for (int64_t k0 = 0; k0 == 0 || k0 < a.T; k0 += steps) {
      const Chunk c = P::chunk(a, k0, std::min(a.T, k0 + steps));
      prepare(c);
      run_steps();
      finish(c);
      if (a.T == 0) break;
    }
    P::finish(f.h_n, a.h_n, a.type, a.B, a.H);
    P::finish(f.c_n, a.c_n, a.type, a.B, a.H);
  }

 private:
  Factor input() const { return {a.w_ih, a.type, 1, gates, a.I, a.I, 1}; }

  void project_table() {
    T* table = arena.template take<T>(a.V * gates);
    const T* rows = P::dense(a.x.p, a.type, a.V, a.I);
    const T* weights = P::few_rows(a) ? nullptr : P::packed(input());
    const Timed timed(kProject);
    if (weights)
      P::multiply(a.V, gates, a.I, rows, a.I, weights, table, gates);
    else
      k.few_products(rows, a.V, input(), table, gates, runner);
    f.x = {table, 0, gates};
    f.tokens = a.tokens;
  }

  void run_steps() {
    const Timed timed(kLoop);
    k.forward(a.kind, f, runner);
  }

  void prepare(const Chunk& c) {
    const auto chunk = [&](T* p, int64_t columns) { return P::buffer(p, c.t0, a.B, columns).template as<T>(); };
    const Steps<T> none{nullptr, 0, 0};
    f.first = c.k0, f.last = c.k1;
    f.y = y_room ? chunk(y_room, a.H) : a.y.as<T>();
    f.c = !a.c.p ? none : c_room ? chunk(c_room, a.H) : a.c.as<T>();
    f.saved = !a.saved.p ? none : saved_room ? chunk(saved_room, Cell::kSaved * a.H) : a.saved.as<T>();
    if (a.tokens || c.steps() == 0) return;
    const Steps<const T> x = P::staged(a.x, c.t0, c.t1, a.B, a.I, x_room);
    const Steps<T> gates_of = in_saved() ? f.saved : in_y() ? f.y : chunk(gate_room, gates);
    const Timed timed(kProject);
    if (w_ih)
      k.project(a.kind, {c.t0, c.t1, a.B, a.I, a.H, x, w_ih, gates_of}, runner);
    else
      k.few_products(x.at(c.t0), c.steps() * a.B, input(), gates_of.at(c.t0), gates_of.row, runner);
    f.x = {gates_of.p, gates_of.step, gates_of.row};
  }

  void finish(const Chunk& c) {
    const Timed timed(kCopy);
    const auto out = [&](T* room, const Stored& to, int64_t columns) {
      if (room) k.copy(P::buffer(room, c.t0, a.B, columns), to, c.t0, c.t1, a.B, columns, runner);
    };
    out(y_room, a.y, a.H);
    out(c_room, a.c, a.H);
    out(saved_room, a.saved, Cell::kSaved * a.H);
  }
};

// ------------------------------------------------------------------------------------------------ backward

template <class Cell, class T>
class BackwardPass : Pass<Cell, T> {
  using P = Pass<Cell, T>;
  using P::G, P::k, P::runner, P::arena, P::native;
  static constexpr int64_t D = Cell::kDeltas;
  const LayerBackward& a;
  const int64_t gates = G * a.H, width = D * a.H;
  const bool recomputes = Cell::kSaved > 0 && !a.saved.p;
  const bool wants_w = a.dw_ih || a.dw_hh;
  int64_t steps;
  T *y_room, *c_room, *dy_room, *saved_room, *x_room = nullptr, *dx_room = nullptr;
  T *delta, *by_token = nullptr, *scratch = nullptr, *sums = nullptr;
  T *w_ih = nullptr, *w_hh = nullptr;                                                  // packed for the gradients
  T *again_ih = nullptr, *again_hh = nullptr, *again_h = nullptr, *again_c = nullptr;  // for computing gates again
  T *dw_ih, *dw_hh;
  const void *h0, *c0;  // as stored; zeros where none are given
  Backward<T> f{};

  // Which gate of w_ih and of w_hh a slot of delta belongs to.
  struct Gates {
    int ih[D], hh[D];
    constexpr Gates() : ih{}, hh{} {
      for (int slot = 0; slot < D; ++slot) {
        const int recurrent = slot - Cell::kRecurrentDelta;
        ih[slot] = slot < G ? Cell::kInputGate[slot] : -1;
        hh[slot] = recurrent >= 0 && recurrent < G ? recurrent : -1;
      }
    }
  };
  static constexpr Gates kGateOf{};

 public:
  BackwardPass(const LayerBackward& a, const Kernels<T>& k, const Runner& runner, const Arena& arena)
      : P(a, k, runner, arena), a(a) {
    const int64_t fitting = std::max<int64_t>(1, kGradientRows / std::max<int64_t>(1, a.B));
    const int64_t chunks = std::max<int64_t>(1, (a.T + fitting - 1) / fitting);
    steps = (a.T + chunks - 1) / chunks;
    const int64_t rows = steps * a.B;
    const auto take = [&](int64_t n) { return arena.template take<T>(n); };
    y_room = P::room(a.y, steps + 1, a.B, a.H, true);
    c_room = P::room(a.c, steps + 1, a.B, a.H, true);
    dy_room = P::room(a.dy, steps, a.B, a.H, true);
    saved_room =
        recomputes ? take(rows * slots<Cell, T> * a.H) : P::room(a.saved, steps, a.B, Cell::kSaved * a.H, true);
    delta = take((steps + 1) * a.B * width);
    if (!a.tokens && recomputes) x_room = P::room(a.x, steps, a.B, a.I, false);
    if (!a.tokens && a.dx.p) dx_room = P::room(a.dx, steps, a.B, a.I, false);
    if (a.tokens && (a.dx.p || wants_w)) by_token = take(a.V * gates);
    if (a.db_ih || a.db_hh) sums = take(width);
    if (wants_w || sums) {
      const int64_t of_table = a.tokens ? k.gradient_scratch(a.V, a.I, 0, runner.threads) : 0;
      scratch = take(std::max(of_table, k.gradient_scratch(rows, a.tokens ? 0 : a.I, a.H, runner.threads)));
    }
    dw_ih = P::result(a.dw_ih, gates, a.I), dw_hh = P::result(a.dw_hh, gates, a.H);
    h0 = given_or_zeros(a.h0), c0 = Cell::kHasCellState ? given_or_zeros(a.c0) : nullptr;
  }

  void run() {
    f.steps = a.T, f.B = a.B, f.H = a.H, f.reverse = a.reverse;
    f.h0 = P::dense(h0, a.type, a.B, a.H), f.c0 = P::dense(c0, a.type, a.B, a.H);
    f.dh_n = P::dense(a.dh_n, a.type, a.B, a.H), f.dc_n = P::dense(a.dc_n, a.type, a.B, a.H);
    f.dh0 = P::result(a.dh0, a.B, a.H), f.dc0 = P::result(a.dc0, a.B, a.H);
    f.w_hh = {a.w_hh, a.type, 1, a.H, gates, 1, a.H};
    f.weights = native && P::few_rows(a) ? nullptr : w_hh = P::packed(f.w_hh);
    f.states = arena.template take<T>(k.backward_states(a.kind, a.B, a.H));
    if (by_token) std::fill_n(by_token, a.V * gates, T(0));
    if (a.dx.p) pack_w_ih();
    if (recomputes) prepare_again();
    for (int64_t k1 = a.T; k1 == a.T || k1 > 0; k1 -= steps) {
      const Chunk c = P::chunk(a, std::max<int64_t>(0, k1 - steps), k1);
      run_chunk(c);
      if (a.T == 0) break;
    }
    if (by_token) table_gradients();
    finish();
  }

 private:
  const void* given_or_zeros(const void* state) const {
    if (state) return state;
    T* zeros = arena.template take<T>(a.B * a.H);
    std::fill_n(zeros, a.B * a.H, T(0));
    return zeros;
  }

  void run_chunk(const Chunk& c) {
    // With the step that comes before the chunk in the order of running.
    const int64_t t0 = a.reverse || c.k0 == 0 ? c.t0 : c.t0 - 1, t1 = a.reverse && c.k0 > 0 ? c.t1 + 1 : c.t1;
    f.first = c.k0, f.last = c.k1;
    f.y = P::staged(a.y, t0, t1, a.B, a.H, y_room);
    f.c = P::staged(a.c, t0, t1, a.B, a.H, c_room);
    f.dy = P::staged(a.dy, c.t0, c.t1, a.B, a.H, dy_room);
    f.saved = recomputes ? again(c) : P::staged(a.saved, c.t0, c.t1, a.B, Cell::kSaved * a.H, saved_room);
    // One step more than the chunk has: the one that is run after it.
    const int64_t first = a.reverse ? c.t0 - 1 : c.t0;
    f.delta = P::buffer(delta, first, a.B, width).template as<T>();
    run_steps();
    if (c.steps() > 0) {
      gradients(c);
      std::copy_n(f.delta.at(a.reverse ? c.t1 - 1 : c.t0), a.B * width, a.reverse ? delta : delta + steps_before(c));
    }
  }
  // Where the next chunk, which has up to `steps` steps, looks for the step that is run after it.
  int64_t steps_before(const Chunk& c) const { return std::min(steps, c.k0) * a.B * width; }

  void run_steps() {
    const Timed timed(kLoop);
    k.backward(a.kind, f, runner);
  }

  void gradients(const Chunk& c) {
    const int64_t rows = c.steps() * a.B;
    const T* d = f.delta.at(c.t0);
    const bool first = c.k1 == a.T;  // of the chunks that are added up
    if (by_token) {
      const Timed timed(kInputGradient);
      k.add_by_token({f.delta.p, f.delta.step, f.delta.row}, a.tokens, c.t0, c.t1, a.B, gates, by_token, runner);
    } else if (a.dx.p) {
      const Timed timed(kInputGradient);
      const Stored to = dx_room ? P::buffer(dx_room, c.t0, a.B, a.I) : a.dx;
      P::multiply(rows, a.I, gates, d, width, w_ih, to.as<T>().at(c.t0), a.I);
      if (dx_room) k.copy(to, a.dx, c.t0, c.t1, a.B, a.I, runner);
    }
    if (rows == 0 || (!wants_w && !sums)) return;
    const Timed timed(kWeightGradient);
    WeightGradient<T> input{};
    if (!a.tokens) input = {{{a.x, c.t0, c.t1}}, a.I, kGateOf.ih, dw_ih};
    k.weight_gradients({rows, a.B, a.H, D, d, width, {input, recurrent_weights(c)}, sums, !first, scratch}, runner);
  }

  // The features are the states that the steps of a chunk began with: those of y a step earlier, or h0.
  WeightGradient<T> recurrent_weights(const Chunk& c) const {
    const bool starts = c.k0 == 0;
    const Piece start{{const_cast<void*>(h0), a.type, 0, a.H}, 0, starts};
    const Piece rest = a.reverse ? Piece{a.y, c.t0 + 1, c.t1 + 1 - starts} : Piece{a.y, c.t0 - 1 + starts, c.t1 - 1};
    return {{a.reverse ? rest : start, a.reverse ? start : rest}, a.H, kGateOf.hh, dw_hh};
  }

  // Calls f(slot, gate, count) for each run of slots of delta that are neighbouring gates of the input side too.
  template <class F>
  static void input_gate_runs(const F& f) {
    for (int slot = 0, end; slot < G; slot = end) {
      end = slot + 1;
      while (end < G && Cell::kInputGate[end] == Cell::kInputGate[end - 1] + 1) ++end;
      f(slot, Cell::kInputGate[slot], end - slot);
    }
  }

  // w_ih for dx = delta w_ih: its gates in the order of delta's slots.
  void pack_w_ih() {
    const Timed timed(kPack);
    w_ih = arena.template take<T>(k.packed_size(1, a.I, gates));
    input_gate_runs([&](int slot, int gate, int count) {
      char* rows = static_cast<char*>(const_cast<void*>(a.w_ih)) + gate * a.H * a.I * size_of(a.type);
      k.pack_rows_at({{rows, a.type, 0, a.I}, 0, 1}, count * a.H, a.I, gates, slot * a.H, w_ih, runner);
    });
  }

  // ---- gates that were not saved

  void prepare_again() {
    again_ih = P::packed({a.w_ih, a.type, 1, gates, a.I, a.I, 1});
    again_hh = P::packed({a.w_hh, a.type, G, a.H, a.H, a.H, 1});
    again_h = arena.template take<T>(steps * a.B * a.H);
    if (Cell::kHasCellState) again_c = arena.template take<T>(steps * a.B * a.H);
    again_bias[0] = P::packed_bias(a.b_ih, a), again_bias[1] = P::packed_bias(a.b_hh, a);
    if (a.tokens) again_table = P::dense(a.x.p, a.type, a.V, a.I);
    if (a.tokens) {
      T* projected = arena.template take<T>(a.V * gates);
      P::multiply(a.V, gates, a.I, again_table, a.I, again_ih, projected, gates);
      again_table = projected;
    }
  }
  const T *again_bias[2] = {}, *again_table = nullptr;

  // What forward would have saved of a chunk. No step waits for another, since all states are known.
  Steps<const T> again(const Chunk& c) {
    const Timed timed(kRecompute);
    const int64_t rows = c.steps() * a.B, ld = slots<Cell, T> * a.H;
    const Stored saved = P::buffer(saved_room, c.t0, a.B, ld);
    if (rows == 0) return saved.as<const T>();
    if (a.tokens) {
      for (int64_t t = c.t0; t < c.t1; ++t)
        for (int64_t b = 0; b < a.B; ++b)
          std::copy_n(again_table + *a.tokens.at(t, b) * gates, gates, saved.as<T>().at(t, b));
    } else {
      const Steps<const T> x = P::staged(a.x, c.t0, c.t1, a.B, a.I, x_room);
      P::multiply(rows, gates, a.I, x.at(c.t0), a.I, again_ih, saved_room, ld);
    }
    states_before(c, a.y, h0, again_h);
    if (Cell::kHasCellState) states_before(c, a.c, c0, again_c);
    k.recompute(a.kind, {rows, a.H, saved_room, ld, again_h, again_c, a.H, again_hh, again_bias[0], again_bias[1]},
                runner);
    return saved.as<const T>();
  }

  // Copies the states that the steps of a chunk began with, time first.
  void states_before(const Chunk& c, const Stored& all, const void* start, T* to) {
    const bool starts = c.k0 == 0;
    const int64_t shift = a.reverse ? 1 : -1;
    Stored earlier = P::buffer(to, c.t0 + shift, a.B, a.H);
    k.copy(all, earlier, c.t0 + shift + (starts && !a.reverse), c.t1 + shift - (starts && a.reverse), a.B, a.H, runner);
    const Stored first{const_cast<void*>(start), a.type, 0, a.H};
    if (starts)
      k.copy(first, {a.reverse ? to + (c.steps() - 1) * a.B * a.H : to, kTypeOf<T>, 0, a.H}, 0, 1, a.B, a.H, runner);
  }

  // ---- the end

  void table_gradients() {
    if (a.dx.p) {
      T* dx = P::result(a.dx.p, a.V, a.I);
      P::multiply(a.V, a.I, gates, by_token, gates, w_ih, dx, a.I);
      P::finish(dx, a.dx.p, a.type, a.V, a.I);
    }
    if (!dw_ih) return;
    const Timed timed(kWeightGradient);
    const Stored table{a.x.p, a.type, 0, a.I};
    const WeightGradient<T> input{{{table, 0, 1}}, a.I, kGateOf.ih, dw_ih};
    k.weight_gradients({a.V, a.V, a.H, G, by_token, gates, {input}, nullptr, false, scratch}, runner);
  }

  void finish() {
    P::finish(f.dh0, a.dh0, a.type, a.B, a.H);
    P::finish(f.dc0, a.dc0, a.type, a.B, a.H);
    if (a.T * a.B == 0) {
      if (wants_w) std::fill_n(dw_ih, gates * a.I, T(0)), std::fill_n(dw_hh, gates * a.H, T(0));
      if (sums) std::fill_n(sums, width, T(0));
    }
    P::finish(dw_ih, a.dw_ih, a.type, gates, a.I);
    P::finish(dw_hh, a.dw_hh, a.type, gates, a.H);
    const auto bias = [&](int64_t slot, void* to, int64_t at, int64_t count) {
      P::convert(sums + slot * a.H, kTypeOf<T>, static_cast<char*>(to) + at * a.H * size_of(a.type), a.type, 1,
                 count * a.H);
    };
    if (a.db_ih)
      for (int slot = 0; slot < G; ++slot) bias(slot, a.db_ih, Cell::kInputGate[slot], 1);
    if (a.db_hh) bias(Cell::kRecurrentDelta, a.db_hh, 0, G);
  }
};

template <class F>
void with_cell(CellKind kind, const F& f) {
  switch (kind) {
    case kLstm: return f(Lstm{});
    case kGru: return f(Gru{});
    case kRnnTanh: return f(RnnTanh{});
    case kRnnRelu: return f(RnnRelu{});
  }
}

}  // namespace

template <class T>
void run_layer(const LayerForward& a, const Kernels<T>& k, const Runner& runner, const Arena& arena) {
  const Timed timed(kWhole);
  with_cell(a.kind, [&](auto cell) { ForwardPass<decltype(cell), T>(a, k, runner, arena).run(); });
}
template <class T>
void run_layer(const LayerBackward& a, const Kernels<T>& k, const Runner& runner, const Arena& arena) {
  const Timed timed(kWhole);
  with_cell(a.kind, [&](auto cell) { BackwardPass<decltype(cell), T>(a, k, runner, arena).run(); });
}

template void run_layer<float>(const LayerForward&, const Kernels<float>&, const Runner&, const Arena&);
template void run_layer<double>(const LayerForward&, const Kernels<double>&, const Runner&, const Arena&);
template void run_layer<float>(const LayerBackward&, const Kernels<float>&, const Runner&, const Arena&);
template void run_layer<double>(const LayerBackward&, const Kernels<double>&, const Runner&, const Arena&);

}  // namespace cpu
}  // namespace fusedrnn
