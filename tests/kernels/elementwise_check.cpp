// Each elementwise kernel against a naive loop in double, at a width with a tail, in fp32 and bf16.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>
#include "elementwise.cpp"

static unsigned state = 1;
static double draw() { state = state * 1664525u + 1013904223u; return (state >> 8) / 8388608.0 - 1; }
static float get(float x) { return x; }
static float get(bf16 x) { uint32_t b = uint32_t(x.bits) << 16; float f; memcpy(&f, &b, 4); return f; }
static void set(float& to, double x) { to = float(x); }
static void set(bf16& to, double x) { float f = float(x); uint32_t b; memcpy(&b, &f, 4); to.bits = b >> 16; }

static int failures = 0;
static void expect(const char* what, double ours, double right, double tolerance) {
    if (!(std::fabs(ours - right) <= tolerance * std::fmax(1, std::fabs(right))))
        if (failures++ < 5) printf("%s: %g, not %g\n", what, ours, right);
}

template <class T> void check(double tolerance) {
    const long half = sizeof(T) == 2, rows = 50, D = 45;
    std::vector<float> x(rows * D), norm(D), r(rows), dx(rows * D), dnorm(D), losses(rows);
    std::vector<T> n(rows * D), again(rows * D), dn(rows * D), pairs(rows * 2 * D), z(rows * D), d(rows * 2 * D);
    for (auto& v : x) v = draw();
    for (auto& v : norm) v = 1 + draw();
    for (auto& v : dn) set(v, draw());
    for (auto& v : pairs) set(v, 5 * draw());
    puna_rms_forward(x.data(), norm.data(), n.data(), r.data(), rows, D, 1e-6, half);
    puna_rms_recompute(x.data(), r.data(), norm.data(), again.data(), rows, D, half);
    puna_rms_backward(dn.data(), x.data(), r.data(), norm.data(), dx.data(), dnorm.data(), rows, D, half);
    std::vector<double> dnorms(D);
    for (long i = 0; i < rows; i++) {
        double squares = 0, mean = 0;
        for (long j = 0; j < D; j++) squares += double(x[i * D + j]) * x[i * D + j];
        const double by = 1 / std::sqrt(squares / D + 1e-6);
        expect("r", r[i], by, 1e-5);
        for (long j = 0; j < D; j++) {
            mean += get(dn[i * D + j]) * norm[j] * x[i * D + j] * by / D;
            dnorms[j] += get(dn[i * D + j]) * x[i * D + j] * by;
        }
        for (long j = 0; j < D; j++) {
            expect("n", get(n[i * D + j]), x[i * D + j] * by * norm[j], tolerance);
            expect("again", get(again[i * D + j]), get(n[i * D + j]), 0);
            expect("dx", dx[i * D + j], by * (get(dn[i * D + j]) * norm[j] - x[i * D + j] * by * mean), 1e-5);
        }
    }
    for (long j = 0; j < D; j++) expect("dnorm", dnorm[j], dnorms[j], 1e-5);

    puna_swiglu_forward(pairs.data(), z.data(), rows, D, half);
    auto swiglu = [&](const char* what) {
        for (long i = 0; i < rows; i++)
            for (long j = 0; j < D; j++) {
                const double g = get(pairs[i * 2 * D + j]), u = get(pairs[i * 2 * D + D + j]);
                expect(what, get(z[i * D + j]), g / (1 + std::exp(-g)) * u, tolerance);
            }
    };
    swiglu("z");
    puna_swiglu_backward(dn.data(), pairs.data(), d.data(), z.data(), rows, D, half);
    swiglu("z again");
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < D; j++) {
            const double g = get(pairs[i * 2 * D + j]), u = get(pairs[i * 2 * D + D + j]);
            const double dz = get(dn[i * D + j]), s = 1 / (1 + std::exp(-g));
            expect("dgate", get(d[i * 2 * D + j]), dz * u * s * (1 + g * (1 - s)), tolerance);
            expect("dup", get(d[i * 2 * D + D + j]), dz * g * s, tolerance);
        }

    std::vector<T> logits = dn;
    std::vector<int64_t> targets(rows);
    for (long i = 0; i < rows; i++) targets[i] = i % 7 ? i % D : -100;
    puna_cross_entropy(logits.data(), targets.data(), losses.data(), rows, D, 0.5, -100, half);
    for (long i = 0; i < rows; i++) {
        double sum = 0;
        for (long j = 0; j < D; j++) sum += std::exp(get(dn[i * D + j]));
        const bool counts = targets[i] != -100;
        expect("loss", losses[i], counts ? std::log(sum) - get(dn[i * D + targets[i]]) : 0, 1e-5);
        for (long j = 0; j < D; j++)
            expect("dlogits", get(logits[i * D + j]),
                   counts ? 0.5 * (std::exp(get(dn[i * D + j])) / sum - (j == targets[i])) : 0, tolerance);
    }

    // Turned and turned back, q, k and v are where they were.
    const long B = 2, tokens = 5, H = 3, K = 1, E = 18, all = B * tokens * (H + 2 * K) * E;
    std::vector<float> cos(tokens * E / 2), sin(tokens * E / 2);
    for (size_t i = 0; i < cos.size(); i++) cos[i] = std::cos(i), sin[i] = std::sin(i);
    std::vector<T> qkv(all), back(all), q(B * tokens * H * E), k(B * tokens * K * E), v(k.size());
    for (auto& one : qkv) set(one, draw());
    puna_split_rotate(qkv.data(), q.data(), k.data(), v.data(), cos.data(), sin.data(), B, tokens, H, K, E, 0, half);
    expect("rotated", get(q[E]), get(qkv[5 * E]) * cos[E / 2] - get(qkv[5 * E + E / 2]) * sin[E / 2], tolerance);
    puna_split_rotate(back.data(), q.data(), k.data(), v.data(), cos.data(), sin.data(), B, tokens, H, K, E, 1, half);
    for (long i = 0; i < all; i++) expect("turned back", get(back[i]), get(qkv[i]), 2 * tolerance);
}

int main() {
    check<float>(1e-5);
    check<bf16>(8e-3);
    printf("%d failures, vectors of %ld\n", failures, LANES);
    return failures != 0;
}
