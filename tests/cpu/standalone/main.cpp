// Every kind of layer on plain pointers, without torch, against naive.h.
//
//   standalone THREADS EVERY
//
// runs every EVERY-th combination of the tables below: all of them with 1, and with a number that has no factor in
// common with their lengths some that still meet each entry of each table. Prints the largest error, in units of what
// is accepted, and fails when that is more than 1.
//
// Every tensor and every piece of working memory is an allocation of its own, of the exact size, full of NaN: the
// address sanitizer sees what is touched beyond the ends, and a value that is read before it is written reaches a
// result.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "../../../csrc/cpu/layer.h"
#include "naive.h"

using namespace fusedrnn;
using namespace fusedrnn::cpu;
using naive::Values;

namespace {

// ---------------------------------------------------------------------------------------------- types

struct Format {
  const char* name;
  int digits, least;  // significant binary digits, and the exponent of the smallest normal number
  double tolerance;   // of an error, in units of the largest value
};
const Format kFormats[] = {{"float32", 24, -126, 1e-5},
                           {"float64", 53, -1022, 1e-13},
                           {"bfloat16", 8, -126, 4.0 / (1 << 8)},
                           {"float16", 11, -14, 4.0 / (1 << 11)}};

// The nearest number of a type to a value that is far from overflow.
double rounded(double v, Type type) {
  const Format& f = kFormats[type];
  int exponent;
  std::frexp(v, &exponent);
  const int unit = std::max(exponent - f.digits, f.least - f.digits + 1);
  return std::ldexp(std::nearbyint(std::ldexp(v, -unit)), unit);
}

uint16_t half_bits(double v, Type type) {
  const Format& f = kFormats[type];
  const int stored = f.digits - 1;
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  int exponent;
  std::frexp(v, &exponent);
  exponent = std::max(exponent - 1, f.least);
  const auto mantissa = uint16_t(std::ldexp(std::fabs(v), stored - exponent));  // 2^stored and more where normal
  const int biased = mantissa >> stored ? exponent - f.least + 1 : 0;
  return sign | uint16_t(biased << stored) | (mantissa & ((1 << stored) - 1));
}

double half_value(uint16_t bits, Type type) {
  const Format& f = kFormats[type];
  const int stored = f.digits - 1, biased = (bits & 0x7fff) >> stored, mantissa = bits & ((1 << stored) - 1);
  if (biased == 0x7fff >> stored) return NAN;  // or infinity, which no case comes to
  const double v = std::ldexp(biased ? mantissa + (1 << stored) : mantissa, std::max(biased, 1) - 1 + f.least - stored);
  return bits & 0x8000 ? -v : v;
}

// ---------------------------------------------------------------------------------------------- memory

using Bytes = std::unique_ptr<char, decltype(&std::free)>;

Bytes allocate(size_t size) {
  void* p = nullptr;
  if (posix_memalign(&p, 64, size > 0 ? size : 1) != 0) std::abort();
  std::memset(p, 0xff, size);
  return Bytes(static_cast<char*>(p), &std::free);
}

// A tensor of one row per step and entry, or a plain matrix: steps = 1.
class Tensor {
 public:
  enum Layout { kTimeFirst, kBatchFirst, kWithGaps, kLayouts };

  Tensor(Type type, int64_t steps, int64_t rows, int64_t columns, Layout layout = kTimeFirst)
      : type_(type), steps_(steps), rows_(rows), columns_(columns), memory_(nullptr, &std::free) {
    const int64_t gap = layout == kWithGaps ? 3 : 0;
    row_ = layout == kBatchFirst ? steps * columns : columns + gap;
    step_ = layout == kBatchFirst ? columns : rows * row_ + gap;
    // Nothing lies behind the last value.
    const int64_t size = steps && rows && columns ? (steps - 1) * step_ + (rows - 1) * row_ + columns : 0;
    memory_ = allocate(size_t(size * size_of(type)));
  }
  Tensor(Type type, int64_t steps, int64_t rows, int64_t columns, const Values& values, Layout layout = kTimeFirst)
      : Tensor(type, steps, rows, columns, layout) {
    each([&](char* p, size_t i) {
      const float single = float(values[i]);
      const uint16_t half = size_of(type_) == 2 ? half_bits(values[i], type_) : 0;
      const void* from = type_ == kFloat64 ? static_cast<const void*>(&values[i]) : &single;
      std::memcpy(p, size_of(type_) == 2 ? &half : from, size_t(size_of(type_)));
    });
  }

  Values values() const {
    Values all(size_t(steps_ * rows_ * columns_));
    each([&](const char* p, size_t i) {
      float single;
      uint16_t half;
      switch (type_) {
        case kFloat64: std::memcpy(&all[i], p, 8); break;
        case kFloat32: std::memcpy(&single, p, 4), all[i] = single; break;
        default: std::memcpy(&half, p, 2), all[i] = half_value(half, type_);
      }
    });
    return all;
  }

  void* p() const { return memory_.get(); }
  Stored stored() const { return {p(), type_, step_, row_}; }

 private:
  template <class F>
  void each(const F& f) const {
    size_t i = 0;
    for (int64_t t = 0; t < steps_; ++t)
      for (int64_t b = 0; b < rows_; ++b)
        for (int64_t k = 0; k < columns_; ++k) f(memory_.get() + (t * step_ + b * row_ + k) * size_of(type_), i++);
  }

  Type type_;
  int64_t steps_, rows_, columns_, step_, row_;
  Bytes memory_;
};

struct Owner {
  std::vector<Bytes> pieces;
  Arena arena() {
    return {[](void* owner, size_t bytes) -> void* {
              auto& pieces = static_cast<Owner*>(owner)->pieces;
              pieces.push_back(allocate(bytes));
              return pieces.back().get();
            },
            this};
  }
};

// ---------------------------------------------------------------------------------------------- threads

int thread_count = 1;

void on_threads(int64_t n, Runner::Body body, void* context) {
  std::vector<std::thread> others;
  const int64_t pieces = std::min<int64_t>(n, thread_count);
  for (int64_t i = 1; i < pieces; ++i)
    others.emplace_back([=] { body(context, n * i / pieces, n * (i + 1) / pieces); });
  if (pieces > 0) body(context, 0, n / pieces);
  for (std::thread& t : others) t.join();
}

// Pieces that were meant for several threads, one after the other: those who wait for company give up.
void in_turn(int64_t n, Runner::Body body, void* context) {
  for (int64_t i = 0; i < n; ++i) body(context, i, i + 1);
}

// ---------------------------------------------------------------------------------------------- cases

struct Size {
  int64_t T, B, I, H, V;
};
const Size kSizes[] =
    {
        {1, 1, 1, 1, 1},     {2, 3, 7, 15, 4}, {3, 2, 29, 16, 3},  {7, 1, 3, 17, 2},
        {5, 7, 2, 33, 50},   {9, 5, 16, 3, 6}, {0, 3, 5, 18, 4},   {4, 1, 18, 35, 3},
        {3, 40, 5, 20, 7},   {4, 3, 9, 67, 5}, {700, 3, 2, 5, 11},  // backward works in several chunks
        {90, 13, 32, 16, 6},                                        // likewise, with features that are read in place
        {5, 48, 16, 32, 9},                                         // threads take rows of the batch
};
const CellKind kKinds[] = {kLstm, kGru, kRnnTanh, kRnnRelu};
const Type kTypes[] = {kFloat32, kFloat64, kBFloat16, kFloat16};
// How entries end: all at T; in a packed sequence; early in padded tensors, in an order of their own.
enum Ends { kAtT, kPacked, kPadded, kEnds };
enum Left { kNothing, kBiases, kGradientOfY, kGradientOfX, kGradientsOfWeights, kLeft };  // what is not there

struct Case {
  CellKind kind;
  Type type;
  Tensor::Layout layout;
  bool reverse, recompute, tokens;
  Size size;
  Left left;
  Ends ends;
  bool resets, dc;
  int64_t detach_every;
  Runner runner;

  std::string name() const {
    static const char* const kinds[] = {"lstm", "gru", "rnn_tanh", "rnn_relu"};
    static const char* const layouts[] = {"time first", "batch first", "with gaps"};
    static const char* const endings[] = {"", ", packed", ", padded"};
    char text[250];
    std::snprintf(text, sizeof text, "%s %s, %s%s%s%s%s%s%s, T %d B %d I %d H %d, without %d, detach %d", kinds[kind],
                  kFormats[type].name, layouts[layout], reverse ? ", reverse" : "", recompute ? ", recompute" : "",
                  tokens ? ", tokens" : "", endings[ends], resets ? ", resets" : "", dc ? ", dc" : "", int(size.T),
                  int(size.B), int(size.I), int(size.H), int(left), int(detach_every));
    return text;
  }
};

struct Random {
  uint64_t state;
  double operator()() {  // -1 to 1
    state = state * 6364136223846793005u + 1442695040888963407u;
    return double(state >> 11) / double(uint64_t(1) << 52) - 1;
  }
  Values operator()(int64_t n, double scale, Type type) {
    Values v(size_t(std::max<int64_t>(n, 0)));
    for (double& x : v) x = rounded((*this)() * scale, type);
    return v;
  }
};

class Errors {
 public:
  void add(const Case& c, const char* what, const Values& values, const Values& right) {
    double scale = 1;
    for (const double v : right) scale = std::max(scale, std::fabs(v));
    for (size_t i = 0; i < right.size(); ++i) {
      const double error = std::fabs(values[i] - right[i]) / scale / kFormats[c.type].tolerance;
      if (error <= largest_[c.type]) continue;  // not so for NaN
      largest_[c.type] = std::isnan(error) ? INFINITY : error;
      worst_[c.type] = std::string(what) + " of " + c.name();
    }
  }
  bool report() const {
    double largest = 0;
    for (const Type type : kTypes) {
      std::printf("%-8s %6.3f of %.1e  %s\n", kFormats[type].name, largest_[type], kFormats[type].tolerance,
                  worst_[type].c_str());
      largest = std::max(largest, largest_[type]);
    }
    std::printf("largest error: %.3f of what is accepted\n", largest);
    return largest <= 1;
  }

 private:
  double largest_[4] = {};
  std::string worst_[4];
};

naive::Layer draw(const Case& c, uint64_t seed) {
  static const int64_t gates[] = {4, 3, 1, 1};
  const Size& s = c.size;
  const int64_t G = gates[c.kind], cells = c.kind == kLstm ? s.B * s.H : 0;
  Random random{seed};
  naive::Layer l{};
  l.cell = naive::Layer::Cell(c.kind), l.T = s.T, l.B = s.B, l.I = s.I, l.H = s.H, l.G = G, l.reverse = c.reverse;
  if (c.tokens)
    for (int64_t i = 0; i < s.T * s.B; ++i) l.tokens.push_back(int64_t((random() + 1) / 2 * double(s.V)));
  l.x = random(c.tokens ? s.V * s.I : s.T * s.B * s.I, 1, c.type);
  l.h0 = random(s.B * s.H, 1, c.type), l.c0 = random(cells, 1, c.type);
  l.w_ih = random(G * s.H * s.I, 1 / std::sqrt(double(s.I)), c.type);
  l.w_hh = random(G * s.H * s.H, 1 / std::sqrt(double(s.H)), c.type);
  if (c.left != kBiases) l.b_ih = random(G * s.H, 1, c.type), l.b_hh = random(G * s.H, 1, c.type);
  if (c.left != kGradientOfY) l.dy = random(s.T * s.B * s.H, 1, c.type);
  if (c.dc) l.dc = random(s.T * cells, 1, c.type);
  l.dh_n = random(s.B * s.H, 1, c.type), l.dc_n = random(cells, 1, c.type);
  l.detach_every = c.detach_every;
  // 0 to T; in a packed sequence at least 1, and not more than the entry before. The first has T.
  for (int64_t b = 0; b < s.B; ++b)
    l.lengths.push_back(c.ends == kAtT || b == 0 ? s.T : int64_t((random() + 1) / 2 * double(s.T + 1)));
  if (c.ends == kPacked) {
    for (int64_t& n : l.lengths) n = std::min(s.T, std::max<int64_t>(n, 1));
    std::sort(l.lengths.rbegin(), l.lengths.rend());
  }
  for (int64_t i = 0; c.resets && i < s.T * s.B; ++i) l.resets.push_back(random() > 0.4);
  return l;
}

// The rows of a packed sequence, and where they are among those of [T, B].
struct Packing {
  std::vector<int64_t> offsets, order, index;

  explicit Packing(const naive::Layer& l) : offsets{0} {
    for (int64_t b = 0; b < l.B; ++b) order.push_back(b);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return l.lengths[a] > l.lengths[b]; });
    for (int64_t t = 0; t < l.T && l.B > 0 && l.lengths[order[0]] > t; ++t) {
      for (const int64_t b : order)
        if (l.lengths[b] > t) index.push_back(t * l.B + b);
      offsets.push_back(int64_t(index.size()));
    }
  }
  template <class V>
  std::vector<V> packed(const std::vector<V>& all, int64_t columns = 1) const {
    std::vector<V> rows;
    for (const int64_t i : index) rows.insert(rows.end(), all.begin() + i * columns, all.begin() + (i + 1) * columns);
    return rows;
  }
};

template <class T>
void compare(const Case& c, naive::Layer& l, const Isa& isa, Errors& errors) {
  const Size& s = c.size;
  const int64_t G = l.G, saved_slots = c.kind <= kGru ? 4 : 0;
  const Type type = c.type;
  const bool lstm = c.kind == kLstm;
  const Packing packing(l);
  const bool ends = c.ends != kAtT, packed = c.ends == kPacked;
  const auto n = int64_t(packing.index.size());
  // Of one row per step and entry: padded, or packed.
  const auto steps = [&](const Values& v, int64_t columns) {
    return packed ? Tensor(type, 1, n, columns, packing.packed(v, columns))
                  : Tensor(type, s.T, s.B, columns, v, c.layout);
  };
  const auto new_steps = [&](int64_t columns, Tensor::Layout layout) {
    return packed ? Tensor(type, 1, n, columns) : Tensor(type, s.T, s.B, columns, layout);
  };
  // As the layer sees it.
  const auto seen = [&](const Tensor& t) {
    Stored all = t.stored();
    if (packed) all.step = s.B * all.row;
    if (c.ends == kPadded) all.index = packing.index.data();
    return all;
  };
  // The values of rows that there are, in the order of the packing.
  const auto right = [&](const Values& v, int64_t columns) { return ends ? packing.packed(v, columns) : v; };
  const auto matrix = [&](const Values& v, int64_t rows, int64_t columns) {
    return Tensor(type, 1, v.empty() ? 0 : rows, columns, v);
  };
  const auto given = [](const Tensor& t, bool is) { return is ? t.p() : nullptr; };

  const Tensor x = c.tokens ? matrix(l.x, s.V, s.I) : steps(l.x, s.I),
               dy = l.dy.empty() ? matrix(l.dy, 0, s.H) : steps(l.dy, s.H);
  const Tensor h0 = matrix(l.h0, s.B, s.H), c0 = matrix(l.c0, s.B, s.H), w_ih = matrix(l.w_ih, G * s.H, s.I);
  const Tensor w_hh = matrix(l.w_hh, G * s.H, s.H), b_ih = matrix(l.b_ih, 1, G * s.H),
               b_hh = matrix(l.b_hh, 1, G * s.H);
  const Tensor dh_n = matrix(l.dh_n, s.B, s.H), dc_n = matrix(l.dc_n, s.B, s.H);
  const Tensor dc = l.dc.empty() ? matrix(l.dc, 0, s.H) : steps(l.dc, s.H);
  // Tokens and resets in the order in which the layout has them.
  const bool batch_first = !ends && c.layout == Tensor::kBatchFirst;
  const auto laid = [&](auto all) {
    auto out = ends && !all.empty() ? packing.packed(all) : all;
    for (size_t i = 0; batch_first && i < all.size(); ++i) out[i % s.B * s.T + i / s.B] = all[i];
    if (out.empty()) out.push_back(0);  // none are read, but null would say that there are none
    return out;
  };
  const auto tokens = laid(c.tokens ? l.tokens : std::vector<int64_t>());
  const auto resets = laid(c.resets ? l.resets : std::vector<uint8_t>());

  Layer a{};
  a.kind = c.kind, a.type = type, a.T = s.T, a.B = s.B, a.I = s.I, a.H = s.H, a.reverse = c.reverse;
  a.x = c.tokens ? x.stored() : seen(x), a.V = c.tokens ? s.V : 0;
  const int64_t step = batch_first ? 1 : s.B, row = batch_first ? s.T : 1;
  if (c.tokens) a.tokens = {tokens.data(), step, row};
  if (c.resets) a.resets = {resets.data(), step, row};
  if (ends) a.offsets = packing.offsets.data();
  if (c.ends == kPadded) a.order = packing.order.data();
  a.h0 = h0.p(), a.c0 = given(c0, lstm), a.w_ih = w_ih.p(), a.w_hh = w_hh.p();
  a.b_ih = given(b_ih, !l.b_ih.empty()), a.b_hh = given(b_hh, !l.b_hh.empty());

  const Tensor y = new_steps(s.H, c.layout), h_n(type, 1, s.B, s.H), c_n(type, 1, s.B, s.H);
  // What is saved is packed wherever entries end; c is as y, with time first.
  const Tensor saved = ends ? Tensor(type, 1, n, saved_slots * s.H) : Tensor(type, s.T, s.B, saved_slots * s.H);
  const Tensor cells = new_steps(s.H, Tensor::kTimeFirst);
  const Stored none{nullptr, type, 0, 0}, kept{saved.p(), type, s.B * saved_slots * s.H, saved_slots * s.H};
  const bool keeps = saved_slots && !c.recompute;
  LayerForward f{a, seen(y), keeps ? kept : none, lstm ? seen(cells) : none, h_n.p(), given(c_n, lstm)};
  {
    Owner owner;
    run_layer<T>(f, kernels_of<T>(isa), c.runner, owner.arena());
  }
  const bool wants_x = c.left != kGradientOfX, wants_w = c.left != kGradientsOfWeights, wants_b = wants_w && a.b_ih;
  const Tensor dx = c.tokens ? Tensor(type, 1, s.V, s.I) : new_steps(s.I, c.layout);
  const Tensor dh0(type, 1, s.B, s.H), dc0(type, 1, s.B, s.H), dw_ih(type, 1, G * s.H, s.I),
      dw_hh(type, 1, G * s.H, s.H);
  const Tensor db_ih(type, 1, 1, G * s.H), db_hh(type, 1, 1, G * s.H);
  const LayerBackward g{a,
                        f.y,
                        f.saved,
                        f.c,
                        l.dy.empty() ? none : seen(dy),
                        dh_n.p(),
                        given(dc_n, lstm),
                        !wants_x   ? none
                        : c.tokens ? dx.stored()
                                   : seen(dx),
                        dh0.p(),
                        given(dc0, lstm),
                        given(dw_ih, wants_w),
                        given(dw_hh, wants_w),
                        given(db_ih, wants_b),
                        given(db_hh, wants_b),
                        l.dc.empty() ? none : seen(dc),
                        c.detach_every};
  {
    Owner owner;
    run_layer<T>(g, kernels_of<T>(isa), c.runner, owner.arena());
  }

  l.run();
  const auto add = [&](const char* what, const Tensor& t, const Values& v) { errors.add(c, what, t.values(), v); };
  const auto add_steps = [&](const char* what, const Tensor& t, const Values& v, int64_t columns) {
    const Values all = t.values();
    errors.add(c, what, c.ends == kPadded ? packing.packed(all, columns) : all, right(v, columns));
  };
  add_steps("y", y, l.y, s.H), add("h_n", h_n, l.h_n), add("dh0", dh0, l.dh0);
  if (lstm) add_steps("c", cells, l.cs, s.H), add("c_n", c_n, l.c_n), add("dc0", dc0, l.dc0);
  if (wants_x) c.tokens ? add("dx", dx, l.dx) : add_steps("dx", dx, l.dx, s.I);
  if (wants_w) add("dw_ih", dw_ih, l.dw_ih), add("dw_hh", dw_hh, l.dw_hh);
  if (wants_b) add("db_ih", db_ih, l.db_ih), add("db_hh", db_hh, l.db_hh);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return std::fprintf(stderr, "usage: %s THREADS EVERY\n", arguments[0]), 2;
  thread_count = std::atoi(arguments[1]);
  const int every = std::atoi(arguments[2]);
  const char* error = nullptr;
  const Isa* isa = selected_isa(&error);
  if (!isa) return std::fprintf(stderr, "%s\n", error), 2;
  Errors errors;
  int number = 0, run = 0;
  for (const Size& size : kSizes)
    for (const CellKind kind : kKinds)
      for (const Type type : kTypes)
        for (int layout = 0; layout < Tensor::kLayouts; ++layout)
          for (int flags = 0; flags < 8; ++flags) {
            if (number++ % every) continue;
            const Runner runner{run % 10 == 9 ? in_turn : on_threads, thread_count};
            Case c{kind,
                   type,
                   Tensor::Layout(layout),
                   (flags & 1) != 0,
                   (flags & 2) != 0,
                   (flags & 4) != 0,
                   size,
                   Left(run % kLeft),
                   size.T > 0 ? Ends(run % kEnds) : kAtT,
                   run % 7 < 3,
                   kind == kLstm && run % 11 < 6,
                   run % 13 < 5 && !(flags & 1) ? 1 + run % 4 : 0,
                   runner};
            ++run;
            naive::Layer l = draw(c, uint64_t(number));
            if (type == kFloat64)
              compare<double>(c, l, *isa, errors);
            else
              compare<float>(c, l, *isa, errors);
          }
  std::printf("%s, %d threads, %d cases\n", isa->name, thread_count, run);
  return errors.report() ? 0 : 1;
}
