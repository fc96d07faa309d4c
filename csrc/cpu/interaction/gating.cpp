// Task interaction: from the sums over a map to the factors of its channels, forward and backward (formulas:
// mtlkit/operators/interaction). Threads divide the rows of the layers; the remaining work is a few thousand
// operations.
//
// UPA's numbers, a few for each image, are computed in double: divided by their mean over the batch, the signals of
// similar images are all about 1, and the sums behind their gradients nearly cancel.
#include "cpu/interaction/gating.h"

#include "cpu/interaction/bands.h"
#include "cpu/interaction/dense.h"

namespace mtlkit {
namespace MTLKIT_ISA {
namespace {

constexpr int kSignals = 3;
constexpr double kShortest = 1e-12;  // lower bound of squared lengths in the cosine
constexpr double kNormaliserEps = 1e-8;

// The sum of term(i) for i < count, in double.
template <typename F>
double sum_of(int64_t count, F term) {
  constexpr int64_t kSums = 16;  // independent sums, which run side by side
  double sums[kSums] = {}, all = 0;
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int64_t k = 0; k < kSums; ++k) sums[k] += term(i + k);
  }
  for (int64_t k = 0; i + k < count; ++k) sums[k] += term(i + k);
  for (const double sum : sums) all += sum;
  return all;
}

template <typename T>
double dot(const T* a, const T* b, int64_t count) {
  return sum_of(count, [=](int64_t i) { return static_cast<double>(a[i]) * b[i]; });
}

template <typename T>
double mean_of(const T* a, int64_t count) {
  return sum_of(count, [=](int64_t i) { return static_cast<double>(a[i]); }) / count;
}

double logistic(double x) { return sigmoid(splat(x))[0]; }

// Shared by forward and backward: the arguments with their types, and the values that forward saves.
template <typename T>
struct Level {
  const InteractionGatingForward& p;
  const int64_t B = p.shape.batch, C = p.shape.channels, P = p.shape.projected, F = p.shape.features,
                H = p.shape.hidden, Q = p.shape.queries;
  const int count = p.alignment ? 3 : 2;  // number of signals
  const T *mean = typed(p.mean), *variance = typed(p.variance), *energy = typed(p.energy), *pooled = typed(p.pooled),
          *f = typed(p.f);
  T *mu = typed(p.mu), *enhanced = typed(p.enhanced), *gates = typed(p.gates);
  T* kept = typed(p.kept);
  T *context = take(B * F), *clf_gate = take(B * F);     // relu(W_c ctx + b_c), g_c
  T *gain = take(B * C), *seg_gate = take(B * C);        // s, g_s
  T *seg_query = take(B * Q), *clf_query = take(B * Q);  // projected shifts
  T *centre = take(F), *slope = take(F);                 // mean and 1 / deviation

  static T* typed(void* data) { return static_cast<T*>(data); }
  static const T* typed(const void* data) { return static_cast<const T*>(data); }
  const T* weight(GatingWeight which) const { return typed(p.weights[which]); }
  T* signal(int i) const { return typed(p.signals[i]); }

  T* take(int64_t size) {
    T* piece = kept;
    kept += size;
    return piece;
  }

  // The normalised context, (B, F).
  void normalise(T* c) const {
    const T *scale = weight(kNormWeight), *shift = weight(kNormBias);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t j = 0; j < F; ++j) c[b * F + j] = (context[b * F + j] - centre[j]) * slope[j] * scale[j] + shift[j];
    }
  }

  // The normalised signals of image b, the input of UPA's layers.
  void normalised_signals(int64_t b, const double* divisor, double* u) const {
    for (int i = 0; i < count; ++i) u[i] = signal(i)[b] / divisor[i];
  }

  void find_divisor(double* divisor) const {
    for (int i = 0; i < count; ++i) {
      divisor[i] = 1;
      if (p.alignment) continue;
      divisor[i] = (p.normaliser ? typed(p.normaliser)[i] : mean_of(signal(i), B)) + kNormaliserEps;
    }
  }

  double hidden(int64_t h, const double* u) const {
    double z = weight(kFc1Bias)[h];
    for (int i = 0; i < count; ++i) z += weight(kFc1Weight)[h * count + i] * u[i];
    return z < 0 ? 0 : z;
  }

  // TIM's changes to the means of the map and to the vector, for image b.
  void shifts(int64_t b, T* seg, T* clf) const {
    for (int64_t c = 0; c < C; ++c) seg[b * C + c] = (mu[b * C + c] - 1) * mean[b * C + c];
    for (int64_t j = 0; j < F; ++j) clf[b * F + j] = enhanced[b * F + j] - f[b * F + j];
  }

  // One over the length of a query.
  double inverse_length(const T* query) const {
    const double square = dot(query, query, Q);
    return 1 / std::sqrt(square < kShortest ? kShortest : square);
  }
};

template <typename T>
struct Forward : Level<T> {
  using L = Level<T>;
  using L::B, L::C, L::P, L::F, L::H, L::Q, L::p, L::mean, L::f, L::mu, L::enhanced, L::gates, L::context, L::clf_gate,
      L::gain, L::seg_gate, L::seg_query, L::clf_query, L::centre, L::slope, L::weight, L::signal, L::typed;

  // Computes the statistics of the batch normalisation for a share of the features.
  void find_statistics(Share work) const {
    T *running_mean = typed(p.norm_mean), *running_var = typed(p.norm_var);
    const T images = static_cast<T>(B), momentum = static_cast<T>(p.momentum);
    for (int64_t j = work.first; j < work.last; ++j) {
      T m = running_mean[j], v = running_var[j];
      if (p.training) {
        m = v = 0;
        for (int64_t b = 0; b < B; ++b) m += context[b * F + j];
        m /= images;
        for (int64_t b = 0; b < B; ++b) v += (context[b * F + j] - m) * (context[b * F + j] - m);
        running_mean[j] += momentum * (m - running_mean[j]);
        running_var[j] += momentum * (v / (images - 1) - running_var[j]);
        v /= images;
      }
      centre[j] = m;
      slope[j] = 1 / std::sqrt(v + static_cast<T>(p.eps));
    }
  }

  void find_signals(int64_t b) const {
    const T* e = enhanced + b * F;
    const double mean_e = mean_of(e, F);
    const double spread = sum_of(F, [=](int64_t j) { return (e[j] - mean_e) * (e[j] - mean_e); }) / F;
    if (p.alignment) {
      const T *seg = seg_query + b * Q, *clf = clf_query + b * Q;
      signal(0)[b] = dot(seg, clf, Q) * this->inverse_length(seg) * this->inverse_length(clf);
      signal(1)[b] = this->energy[b];
      signal(2)[b] = std::log1p(spread);
      return;
    }
    const T *m = mu + b * C, *v = this->variance + b * C;
    signal(0)[b] = sum_of(C, [=](int64_t c) { return static_cast<double>(m[c]) * m[c] * v[c]; }) / C;
    signal(1)[b] = spread;
  }

  void find_gates(int64_t b, const double* divisor) const {
    double u[kSignals], z[2] = {weight(kFc2Bias)[0], weight(kFc2Bias)[1]};
    this->normalised_signals(b, divisor, u);
    for (int64_t h = 0; h < H; ++h) {
      const double unit = this->hidden(h, u);
      for (int i = 0; i < 2; ++i) z[i] += weight(kFc2Weight)[i * H + h] * unit;
    }
    T* w = gates + b * 2;
    if (p.alignment) {
      for (int i = 0; i < 2; ++i) w[i] = logistic(z[i]);
      return;
    }
    w[0] = logistic(z[0] - z[1]);  // softmax over two logits
    w[1] = logistic(z[1] - z[0]);
  }

  int run() const {
    Scratch<T> scratch(B * (F + (p.alignment ? C + F : 0)));
    if (!scratch.ok()) return kOutOfMemory;
    T *c = scratch.get(), *seg_shift = c + B * F, *clf_shift = seg_shift + B * C;
    const auto open = [](Vec<T> v) { return sigmoid(v); };
    on_threads(p.threads, [&](int thread, int team) {
      const Share features = share(F, team, thread), channels = share(C, team, thread);
      linear<T>(this->pooled, B, P, weight(kContextWeight), weight(kContextBias), F, features, context);
      for (int64_t b = 0; b < B; ++b) {
        transform<T>(context + b * F + features.first, features.last - features.first, relu<T>);
      }
      find_statistics(features);
      linear<T>(f, B, F, weight(kGainWeight), weight(kGainBias), C, channels, gain);
      linear<T>(mean, B, C, weight(kSegGateWeight), weight(kSegGateBias), C, channels, seg_gate);
      for (int64_t b = 0; b < B; ++b) {
        for (T* gate : {gain, seg_gate}) {
          transform<T>(gate + b * C + channels.first, channels.last - channels.first, open);
        }
        for (int64_t i = b * C + channels.first; i < b * C + channels.last; ++i) {
          mu[i] = 1 + static_cast<T>(p.tau) * seg_gate[i] * gain[i];
        }
      }
    });
    this->normalise(c);
    on_threads(p.threads, [&](int thread, int team) {
      const Share features = share(F, team, thread);
      linear<T>(c, B, F, weight(kClfGateWeight), weight(kClfGateBias), F, features, clf_gate);
      for (int64_t b = 0; b < B; ++b) {
        transform<T>(clf_gate + b * F + features.first, features.last - features.first, open);
        for (int64_t i = b * F + features.first; i < b * F + features.last; ++i) {
          enhanced[i] = f[i] + clf_gate[i] * c[i];
        }
      }
    });
    if (p.alignment) {
      for (int64_t b = 0; b < B; ++b) this->shifts(b, seg_shift, clf_shift);
      on_threads(p.threads, [&](int thread, int team) {
        const Share queries = share(Q, team, thread);
        linear<T>(seg_shift, B, C, weight(kSegProj), nullptr, Q, queries, seg_query);
        linear<T>(clf_shift, B, F, weight(kClfProj), nullptr, Q, queries, clf_query);
      });
    }
    for (int64_t b = 0; b < B; ++b) find_signals(b);
    double divisor[kSignals];
    this->find_divisor(divisor);
    T *factors = typed(p.factors), *clf = typed(p.clf);
    for (int64_t b = 0; b < B; ++b) {
      find_gates(b, divisor);
      const T* w = gates + b * 2;
      for (int64_t i = b * C; i < (b + 1) * C; ++i) factors[i] = 1 + w[0] * (mu[i] - 1);
      for (int64_t i = b * F; i < (b + 1) * F; ++i) clf[i] = f[i] + w[1] * (enhanced[i] - f[i]);
    }
    return kOk;
  }
};

template <typename T>
struct Backward : Level<T> {
  using L = Level<T>;
  using L::B, L::C, L::P, L::F, L::H, L::Q, L::p, L::mean, L::f, L::mu, L::enhanced, L::gates, L::context, L::clf_gate,
      L::gain, L::seg_gate, L::seg_query, L::clf_query, L::centre, L::slope, L::weight, L::signal, L::typed, L::count;

  const InteractionGatingBackward& q;
  Scratch<T> scratch{B * (6 * F + 4 * C + 2 * Q)};
  Scratch<double> signal_scratch{kSignals * B};
  T* left = scratch.get();
  T *dmu = next(B * C), *denhanced = next(B * F), *df = next(B * F);
  T *dgain = next(B * C), *dseg_gate = next(B * C), *dclf_gate = next(B * F), *dcontext = next(B * F);
  T *c = next(B * F), *seg_shift = next(B * C), *clf_shift = next(B * F);
  T *dseg_query = next(B * Q), *dclf_query = next(B * Q);
  double* dsignals = signal_scratch.get();

  explicit Backward(const InteractionGatingBackward& params) : L{params.forward}, q(params) {}

  T* next(int64_t size) {
    T* piece = left;
    if (left) left += size;
    return piece;
  }

  T* dweight(GatingWeight which) const { return typed(q.dweights[which]); }
  static T given(const void* values, int64_t i) { return values ? typed(values)[i] : 0; }

  // The gradient through the gates of image b to the normalised signals; adds to the gradients of UPA's layers.
  void pull_gates(int64_t b, const double* divisor, double* du) const {
    const T* w = gates + b * 2;
    double dw[2] = {given(q.dgates, 2 * b), given(q.dgates, 2 * b + 1)}, dz[2];
    if (q.dfactors) {
      const T *d = typed(q.dfactors) + b * C, *m = mu + b * C;
      dw[0] += sum_of(C, [=](int64_t c) { return static_cast<double>(d[c]) * (m[c] - 1); });
    }
    if (q.dclf) {
      const T *d = typed(q.dclf) + b * F, *e = enhanced + b * F, *base = f + b * F;
      dw[1] += sum_of(F, [=](int64_t j) { return static_cast<double>(d[j]) * (e[j] - base[j]); });
    }
    for (int i = 0; i < 2; ++i) dz[i] = w[i] * (p.alignment ? (1 - w[i]) * dw[i] : w[1 - i] * (dw[i] - dw[1 - i]));
    double u[kSignals];
    this->normalised_signals(b, divisor, u);
    for (int i = 0; i < count; ++i) du[i] = 0;
    for (int i = 0; i < 2; ++i) add(kFc2Bias, i, dz[i]);
    for (int64_t h = 0; h < H; ++h) {
      const double unit = this->hidden(h, u);
      double dunit = 0;
      for (int i = 0; i < 2; ++i) {
        add(kFc2Weight, i * H + h, dz[i] * unit);
        dunit += weight(kFc2Weight)[i * H + h] * dz[i];
      }
      if (unit <= 0) continue;
      add(kFc1Bias, h, dunit);
      for (int i = 0; i < count; ++i) {
        add(kFc1Weight, h * count + i, dunit * u[i]);
        du[i] += weight(kFc1Weight)[h * count + i] * dunit;
      }
    }
  }

  void add(GatingWeight which, int64_t i, double value) const {
    if (T* target = dweight(which)) target[i] += value;
  }

  // Replaces the gradients of the normalised signals by those of the signals.
  void pull_normaliser(const double* divisor) const {
    for (int i = 0; i < count; ++i) {
      double* d = dsignals + i * B;
      double coupled = 0;
      for (int64_t b = 0; !p.alignment && !p.normaliser && b < B; ++b) coupled += d[b] * signal(i)[b];
      coupled /= divisor[i] * divisor[i] * B;
      for (int64_t b = 0; b < B; ++b) d[b] = d[b] / divisor[i] - coupled + given(q.dsignals[i], b);
    }
  }

  // The gradient of a, from that of the cosine of two queries, (a . b) / (|a| |b|).
  void pull_cosine(const T* a, const T* b, double dcosine, T* da) const {
    const double square = dot(a, a, Q), inverse = this->inverse_length(a), other = this->inverse_length(b);
    const double along = square < kShortest ? 0 : dot(a, b, Q) * inverse * inverse;
    for (int64_t i = 0; i < Q; ++i) da[i] = dcosine * inverse * other * (b[i] - along * a[i]);
  }

  // Gradients of mu and of the enhanced vector, without the part through the queries.
  void pull_signals(int64_t b) const {
    const T *w = gates + b * 2, *e = enhanced + b * F, mean_e = static_cast<T>(mean_of(e, F));
    const T dseg = static_cast<T>(dsignals[b] * 2 / C);
    double dspread = dsignals[(count - 1) * B + b];
    if (p.alignment) {
      dspread *= std::exp(-signal(2)[b]);
      pull_cosine(seg_query + b * Q, clf_query + b * Q, dsignals[b], dseg_query + b * Q);
      pull_cosine(clf_query + b * Q, seg_query + b * Q, dsignals[b], dclf_query + b * Q);
      if (q.denergy) typed(q.denergy)[b] = dsignals[B + b];
    }
    const T dlevel = static_cast<T>(dspread * 2 / F);
    for (int64_t j = 0; j < F; ++j) {
      const T dclf = given(q.dclf, b * F + j);
      denhanced[b * F + j] = given(q.denhanced, b * F + j) + dclf * w[1] + dlevel * (e[j] - mean_e);
      df[b * F + j] = dclf * (1 - w[1]);
    }
    for (int64_t i = b * C; i < (b + 1) * C; ++i) {
      dmu[i] = given(q.dmu, i) + given(q.dfactors, i) * w[0];
      if (p.alignment) continue;
      dmu[i] += dseg * mu[i] * this->variance[i];
      if (q.dvariance) typed(q.dvariance)[i] = dseg / 2 * mu[i] * mu[i];
    }
  }

  // With three signals: the gradient through the two query projections.
  void pull_queries() const {
    for (int64_t b = 0; b < B; ++b) this->shifts(b, seg_shift, clf_shift);
    on_threads(p.threads, [&](int thread, int team) {
      // dgain and dclf_gate are not needed yet, and hold the shifts' gradients meanwhile
      pull_linear<T>(dseg_query, seg_shift, weight(kSegProj), B, Q, C, thread, team, false, dgain, dweight(kSegProj),
                     nullptr);
      pull_linear<T>(dclf_query, clf_shift, weight(kClfProj), B, Q, F, thread, team, false, dclf_gate,
                     dweight(kClfProj), nullptr);
    });
    for (int64_t i = 0; i < B * C; ++i) {
      dmu[i] += dgain[i] * mean[i];
      if (q.dmean) typed(q.dmean)[i] = dgain[i] * (mu[i] - 1);
    }
    for (int64_t i = 0; i < B * F; ++i) {
      denhanced[i] += dclf_gate[i];
      df[i] -= dclf_gate[i];
    }
  }

  // Given the gradient of the normalised context, computes that of the context before its ReLU.
  void pull_norm() const {
    const T images = static_cast<T>(B);
    for (int64_t j = 0; j < F; ++j) {
      const T scale = weight(kNormWeight)[j];
      T sum = 0, along = 0;
      for (int64_t b = 0; b < B; ++b) {
        const T d = dcontext[b * F + j];
        sum += d;
        along += d * (context[b * F + j] - centre[j]) * slope[j];
      }
      if (T* d = dweight(kNormWeight)) d[j] = along;
      if (T* d = dweight(kNormBias)) d[j] = sum;
      for (int64_t b = 0; b < B; ++b) {
        const T a = context[b * F + j];
        T d = dcontext[b * F + j];
        if (p.training) d -= (sum + along * (a - centre[j]) * slope[j]) / images;
        dcontext[b * F + j] = a <= 0 ? 0 : d * scale * slope[j];
      }
    }
  }

  int run() const {
    if (!scratch.ok() || !signal_scratch.ok()) return kOutOfMemory;
    double divisor[kSignals], du[kSignals];
    this->find_divisor(divisor);
    const int64_t sizes[] = {H * count, H, 2 * H, 2};
    for (int i = 0; i < 4; ++i) {
      if (T* d = typed(q.dweights[kFc1Weight + i])) std::fill_n(d, sizes[i], T{0});
    }
    for (int64_t b = 0; b < B; ++b) {
      pull_gates(b, divisor, du);
      for (int i = 0; i < count; ++i) dsignals[i * B + b] = du[i];
    }
    pull_normaliser(divisor);
    for (int64_t b = 0; b < B; ++b) pull_signals(b);
    if (p.alignment) pull_queries();
    this->normalise(c);
    for (int64_t i = 0; i < B * F; ++i) {
      df[i] += denhanced[i];
      dcontext[i] = denhanced[i] * clf_gate[i];
      dclf_gate[i] = denhanced[i] * c[i] * clf_gate[i] * (1 - clf_gate[i]);
    }
    for (int64_t i = 0; i < B * C; ++i) {
      const T d = dmu[i] * static_cast<T>(p.tau) * gain[i] * seg_gate[i];
      dgain[i] = d * (1 - gain[i]);
      dseg_gate[i] = d * (1 - seg_gate[i]);
    }
    on_threads(p.threads, [&](int thread, int team) {
      pull_linear<T>(dclf_gate, c, weight(kClfGateWeight), B, F, F, thread, team, true, dcontext,
                     dweight(kClfGateWeight), dweight(kClfGateBias));
    });
    pull_norm();
    on_threads(p.threads, [&](int thread, int team) {
      pull_linear<T>(dcontext, this->pooled, weight(kContextWeight), B, F, P, thread, team, false, typed(q.dpooled),
                     dweight(kContextWeight), dweight(kContextBias));
      pull_linear<T>(dgain, f, weight(kGainWeight), B, C, F, thread, team, true, q.df ? df : nullptr,
                     dweight(kGainWeight), dweight(kGainBias));
      pull_linear<T>(dseg_gate, mean, weight(kSegGateWeight), B, C, C, thread, team, p.alignment, typed(q.dmean),
                     dweight(kSegGateWeight), dweight(kSegGateBias));
    });
    if (q.df) std::copy_n(df, B * F, typed(q.df));
    return kOk;
  }
};

}  // namespace

int interaction_gating_forward(const InteractionGatingForward& p) {
  return p.use_double ? Forward<double>{{p}}.run() : Forward<float>{{p}}.run();
}

int interaction_gating_backward(const InteractionGatingBackward& q) {
  return q.forward.use_double ? Backward<double>(q).run() : Backward<float>(q).run();
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
