// The layer as its definition reads, in double: one value at a time, nothing shared with the library but the structs of
// its interface.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace naive {

using Values = std::vector<double>;

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// All in row-major order with time first. Where there are tokens, x is a table.
struct Layer {
  enum Cell { kLstm, kGru, kRnnTanh, kRnnRelu } cell;
  int64_t T, B, I, H, G;
  bool reverse;
  std::vector<int64_t> tokens;   // [T, B] or empty
  std::vector<int64_t> lengths;  // [B]: the steps that each entry has
  std::vector<uint8_t> resets;   // [T, B] or empty: states are zeroed before the step
  int64_t detach_every;          // no gradient passes the beginning of steps that this divides; 0 for none
  Values x, h0, c0, w_ih, w_hh, b_ih, b_hh, dy, dc, dh_n, dc_n;
  // Results; y and cs, which is c of every step, are zero behind the end of an entry.
  Values y, cs, h_n, c_n, dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh;

  int64_t step(int64_t k) const { return reverse ? T - 1 - k : k; }
  int64_t row_of_x(int64_t t, int64_t b) const { return tokens.empty() ? t * B + b : tokens[t * B + b]; }
  bool runs(int64_t t, int64_t b) const { return t >= 0 && t < lengths[b]; }
  bool begins(int64_t t, int64_t b) const { return !resets.empty() && resets[t * B + b]; }
  double activation(double a) const { return cell == kRnnTanh ? std::tanh(a) : a > 0 ? a : 0; }

  void run() {
    y.assign(T * B * H, 0), cs.assign(T * B * H, 0), gates.assign(T * B * G * H, 0), recurrent.assign(T * B * G * H, 0);
    h_n = h0, c_n = c0;
    for (int64_t k = 0; k < T; ++k) forward_step(step(k));
    dx.assign(x.size(), 0), dw_ih.assign(w_ih.size(), 0), dw_hh.assign(w_hh.size(), 0);
    db_ih.assign(G * H, 0), db_hh.assign(G * H, 0);
    dh0 = dh_n, dc0 = dc_n;
    for (int64_t k = T - 1; k >= 0; --k) backward_step(k);
  }

 private:
  Values gates, recurrent;

  void forward_step(int64_t t) {
    for (int64_t b = 0; b < B; ++b)
      for (int64_t j = 0; begins(t, b) && runs(t, b) && j < H; ++j) {
        h_n[b * H + j] = 0;
        if (cell == kLstm) c_n[b * H + j] = 0;
      }
    const Values before = h_n;
    for (int64_t b = 0; b < B; ++b) {
      if (!runs(t, b)) continue;
      const int64_t at = t * B + b;
      for (int64_t n = 0; n < G * H; ++n) {
        double a = b_ih.empty() ? 0 : b_ih[n], r = b_hh.empty() ? 0 : b_hh[n];
        for (int64_t i = 0; i < I; ++i) a += x[row_of_x(t, b) * I + i] * w_ih[n * I + i];
        for (int64_t j = 0; j < H; ++j) r += before[b * H + j] * w_hh[n * H + j];
        gates[at * G * H + n] = a, recurrent[at * G * H + n] = r;
      }
      for (int64_t j = 0; j < H; ++j) {
        double* g = &gates[at * G * H + j];
        const double* r = &recurrent[at * G * H + j];
        double& h = h_n[b * H + j];
        if (cell == kLstm) {
          double& c = c_n[b * H + j];
          for (int n : {0, 1, 3}) g[n * H] = sigmoid(g[n * H] + r[n * H]);
          g[2 * H] = std::tanh(g[2 * H] + r[2 * H]);
          cs[at * H + j] = c = g[H] * c + g[0] * g[2 * H];
          h = g[3 * H] * std::tanh(c);
        } else if (cell == kGru) {
          for (int n : {0, 1}) g[n * H] = sigmoid(g[n * H] + r[n * H]);
          g[2 * H] = std::tanh(g[2 * H] + g[0] * r[2 * H]);
          h = (1 - g[H]) * g[2 * H] + g[H] * h;
        } else {
          h = activation(g[0] + r[0]);
        }
        y[at * H + j] = h;
      }
    }
  }

  double dc_of_step(int64_t i) const { return dc.empty() ? 0 : dc[i]; }

  // dh0 and dc0 hold the gradients of the states after the step on entry, of those before it on return.
  void backward_step(int64_t k) {
    const int64_t t = step(k);
    const bool cut = detach_every && t % detach_every == 0 && t > 0;
    for (int64_t b = 0; b < B; ++b) {
      if (!runs(t, b)) continue;
      const bool first = !runs(reverse ? t + 1 : t - 1, b), zeroed = begins(t, b);
      const int64_t at = t * B + b, before = (reverse ? t + 1 : t - 1) * B + b;
      const auto state_before = [&](const Values& start, const Values& all, int64_t j) {
        return zeroed ? 0 : first ? start[b * H + j] : all[before * H + j];
      };
      Values da(G * H), dr(G * H), direct(H);  // of the two sides of the pre-activations; of h, not through w_hh
      for (int64_t j = 0; j < H; ++j) {
        const double* g = &gates[at * G * H + j];
        const double h_before = state_before(h0, y, j);
        const double dh = dh0[b * H + j] + (dy.empty() ? 0 : dy[at * H + j]);
        if (cell == kLstm) {
          const double c_before = state_before(c0, cs, j);
          const double i = g[0], f = g[H], z = g[2 * H], o = g[3 * H], tc = std::tanh(cs[at * H + j]);
          const double dc = dc0[b * H + j] + dc_of_step(at * H + j) + dh * o * (1 - tc * tc);
          da[j] = dc * z * i * (1 - i), da[H + j] = dc * c_before * f * (1 - f);
          da[2 * H + j] = dc * i * (1 - z * z), da[3 * H + j] = dh * tc * o * (1 - o);
          dc0[b * H + j] = dc * f;
          for (int n = 0; n < 4; ++n) dr[n * H + j] = da[n * H + j];
        } else if (cell == kGru) {
          const double r = g[0], z = g[H], n = g[2 * H], hn = recurrent[at * G * H + 2 * H + j];
          const double dn = dh * (1 - z) * (1 - n * n);
          da[j] = dr[j] = dn * hn * r * (1 - r);
          da[H + j] = dr[H + j] = dh * (h_before - n) * z * (1 - z);
          da[2 * H + j] = dn, dr[2 * H + j] = dn * r;
          direct[j] = dh * z;
        } else {
          const double h = y[at * H + j];
          da[j] = dr[j] = cell == kRnnTanh ? dh * (1 - h * h) : h > 0 ? dh : 0;
        }
      }
      for (int64_t j = 0; j < H; ++j) dh0[b * H + j] = direct[j];
      for (int64_t n = 0; n < G * H; ++n) {
        db_ih[n] += da[n], db_hh[n] += dr[n];
        for (int64_t i = 0; i < I; ++i) {
          dx[row_of_x(t, b) * I + i] += da[n] * w_ih[n * I + i];
          dw_ih[n * I + i] += da[n] * x[row_of_x(t, b) * I + i];
        }
        for (int64_t j = 0; j < H; ++j) {
          dh0[b * H + j] += dr[n] * w_hh[n * H + j];
          dw_hh[n * H + j] += dr[n] * state_before(h0, y, j);
        }
      }
      for (int64_t j = 0; (zeroed || cut) && j < H; ++j) {
        dh0[b * H + j] = 0;
        if (cell == kLstm) dc0[b * H + j] = 0;
      }
    }
  }
};

}  // namespace naive
