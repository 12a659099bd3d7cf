// The elementwise arithmetic between the matrix products of a training step, each kernel one pass over memory.
//
// elementwise.py gives each of them as a PyTorch function too: its specification. Tensors are contiguous; T is fp32 or
// bf16 (`half`); what is not T is fp32. A row belongs to one thread, and what is summed over rows is summed by
// blocks of a fixed number of rows, then in the blocks' order: the bits do not depend on the number of threads.
//
//   bytes of memory for each number, fp32 / bf16, the floor of the time:
//     rms_forward 8 / 6      rms_recompute 8 / 6      rms_backward 12 / 10     swiglu_forward 12 / 6 (of z)
//     swiglu_backward 24 / 12 (of z)      rotate 8 / 4      cross_entropy 16 / 8 (a row stays in cache between its passes)

#include <cmath>
#include <cstdlib>

#include "elementwise.h"

namespace {

constexpr long ALONE = 1 << 15;  // numbers that are not worth waiting for other threads
constexpr long BLOCK = 32;       // rows whose sums are taken together

template <class T>
void rms_forward(const float* x, const float* norm, T* n, float* r, long rows, long D, float eps) {
#pragma omp parallel for schedule(static) if (rows * D > ALONE)
    for (long row = 0; row < rows; row++) {
        const float* xs = x + row * D;
        Sums squares;
        sweep(D, [&](long i, auto extent, int lane) {
            const Floats v = load(xs + i, extent);
            squares[lane] += v * v;
        });
        r[row] = 1 / std::sqrt(squares.total() / D + eps);
        sweep(D, [&](long i, auto extent, int) {
            store(n + row * D + i, load(xs + i, extent) * r[row] * load(norm + i, extent), extent);
        });
    }
}

template <class T>
void rms_recompute(const float* x, const float* r, const float* norm, T* n, long rows, long D) {
#pragma omp parallel for schedule(static) if (rows * D > ALONE)
    for (long row = 0; row < rows; row++)
        sweep(D, [&](long i, auto extent, int) {
            store(n + row * D + i, load(x + row * D + i, extent) * r[row] * load(norm + i, extent), extent);
        });
}

template <class T>
void rms_backward(const T* dn, const float* x, const float* r, const float* norm, float* dx, float* dnorm, long rows,
                  long D) {
    const long blocks = (rows + BLOCK - 1) / BLOCK;
    float* sums = static_cast<float*>(std::calloc(blocks * D + 1, sizeof(float)));
#pragma omp parallel for schedule(static) if (rows * D > ALONE)
    for (long block = 0; block < blocks; block++)
        for (long row = block * BLOCK; row < rows && row < (block + 1) * BLOCK; row++) {
            const T* dns = dn + row * D;
            const float *xs = x + row * D, by = r[row];
            float* own = sums + block * D;
            Sums products;
            sweep(D, [&](long i, auto extent, int lane) {
                const Floats d = load(dns + i, extent), hat = load(xs + i, extent) * by;
                const Floats part = d * hat;
                store(own + i, load(own + i, extent) + part, extent);
                products[lane] += part * load(norm + i, extent);
            });
            const float mean = products.total() / D;
            sweep(D, [&](long i, auto extent, int) {
                const Floats g = load(dns + i, extent) * load(norm + i, extent), hat = load(xs + i, extent) * by;
                store(dx + row * D + i, by * (g - hat * mean), extent);
            });
        }
    for (long i = 0; i < D; i++) dnorm[i] = 0;
    for (long block = 0; block < blocks; block++)
        for (long i = 0; i < D; i++) dnorm[i] += sums[block * D + i];
    std::free(sums);
}

INLINE Floats sigmoid(Floats x) { return 1.f / (1.f + exponential(-x)); }

template <class T>
void swiglu_forward(const T* gate_up, T* z, long rows, long F) {
#pragma omp parallel for schedule(static) if (rows * F > ALONE)
    for (long row = 0; row < rows; row++) {
        const T *gates = gate_up + row * 2 * F, *ups = gates + F;
        sweep(F, [&](long i, auto extent, int) {
            const Floats gate = load(gates + i, extent);
            store(z + row * F + i, gate * sigmoid(gate) * load(ups + i, extent), extent);
        });
    }
}

template <class T>
void swiglu_backward(const T* dz, const T* gate_up, T* d, T* z, long rows, long F) {
#pragma omp parallel for schedule(static) if (rows * F > ALONE)
    for (long row = 0; row < rows; row++) {
        const T *gates = gate_up + row * 2 * F, *ups = gates + F;
        T *dgates = d + row * 2 * F, *dups = dgates + F;
        sweep(F, [&](long i, auto extent, int) {
            const Floats gate = load(gates + i, extent), up = load(ups + i, extent);
            const Floats dzs = load(dz + row * F + i, extent);
            const Floats s = sigmoid(gate), silu = gate * s;
            store(dgates + i, dzs * up * (s + silu * (1.f - s)), extent);
            store(dups + i, dzs * silu, extent);
            store(z + row * F + i, silu * up, extent);
        });
    }
}

// Pairs (x[i], x[i + E/2]) turned by the angles of their position, forward by `turn` 1 and back by -1.
template <class T>
INLINE void rotate(const T* x, T* y, const float* cos, const float* sin, float turn, long half) {
    sweep(half, [&](long i, auto extent, int) {
        const Floats low = load(x + i, extent), high = load(x + half + i, extent);
        const Floats c = load(cos + i, extent), s = load(sin + i, extent) * turn;
        store(y + i, low * c - high * s, extent);
        store(y + half + i, high * c + low * s, extent);
    });
}

// (B, T, H + 2K, E) apart into q (B, H, T, E), k and v (B, K, T, E), or those back together.
template <class T, bool BACK>
void split_rotate(T* qkv, T* q, T* k, T* v, const float* cos, const float* sin, long B, long tokens, long H, long K,
                  long E) {
    const long heads = H + 2 * K;
#pragma omp parallel for schedule(static) if (B * tokens * heads * E > ALONE)
    for (long row = 0; row < B * tokens; row++) {
        const long b = row / tokens, t = row % tokens;
        for (long head = 0; head < heads; head++) {
            const long group = head < H ? H : K, first = head < H ? 0 : head < H + K ? H : H + K;
            T* apart = (head < H ? q : head < H + K ? k : v) + ((b * group + head - first) * tokens + t) * E;
            T* together = qkv + (row * heads + head) * E;
            T *from = BACK ? apart : together, *to = BACK ? together : apart;
            if (head < H + K)
                rotate(from, to, cos + t * (E / 2), sin + t * (E / 2), BACK ? -1.f : 1.f, E / 2);
            else
                std::memcpy(to, from, E * sizeof(T));
        }
    }
}

constexpr long STRETCH = 1024;  // logits whose greatest is found before their exponentials are summed: in the L1 cache

// Losses, and in place of the logits the gradient of scale * sum of losses.
template <class T>
void cross_entropy(T* logits, const int64_t* targets, float* losses, long rows, long V, float scale, int64_t ignore) {
#pragma omp parallel for schedule(static) if (rows * V > ALONE)
    for (long row = 0; row < rows; row++) {
        T* x = logits + row * V;
        if (targets[row] == ignore) {
            losses[row] = 0;
            std::memset(x, 0, V * sizeof(T));
            continue;
        }
        float top = -INFINITY, sum = 0;
        for (long start = 0; start < V; start += STRETCH) {
            const long count = V - start < STRETCH ? V - start : STRETCH;
            Floats most[4] = {all(top), all(top), all(top), all(top)};
            sweep(count, [&](long i, auto extent, int lane) {
                Floats v = load(x + start + i, extent);
                for (long beyond = extent.count; beyond < LANES; beyond++) v[beyond] = v[0];
                most[lane] = v > most[lane] ? v : most[lane];
            });
            for (int lane = 1; lane < 4; lane++) most[0] = most[lane] > most[0] ? most[lane] : most[0];
            const float before = top;
            top = largest(most[0]);
            Sums sums;
            sweep(count, [&](long i, auto extent, int lane) {
                Floats e = exponential(load(x + start + i, extent) - top);
                for (long beyond = extent.count; beyond < LANES; beyond++) e[beyond] = 0;
                sums[lane] += e;
            });
            sum = (start ? sum * std::exp(before - top) : 0) + sums.total();
        }
        float target;
        {
            const Floats one = load(x + targets[row], Part{1});
            target = one[0];
        }
        losses[row] = top + std::log(sum) - target;
        const float by = scale / sum;
        sweep(V, [&](long i, auto extent, int) {
            store(x + i, exponential(load(x + i, extent) - top) * by, extent);
        });
        const Floats at = all((std::exp(target - top) / sum - 1) * scale);
        store(x + targets[row], at, Part{1});
    }
}

}  // namespace

// Calls a template for the numbers' type.
#define FOR_TYPE(half, call)     \
    if (half) {                  \
        using T = bf16;          \
        call;                    \
    } else {                     \
        using T = float;         \
        call;                    \
    }

extern "C" {

void puna_rms_forward(const float* x, const float* norm, void* n, float* r, long rows, long D, double eps, long half) {
    FOR_TYPE(half, rms_forward(x, norm, (T*)n, r, rows, D, eps))
}

void puna_rms_recompute(const float* x, const float* r, const float* norm, void* n, long rows, long D, long half) {
    FOR_TYPE(half, rms_recompute(x, r, norm, (T*)n, rows, D))
}

void puna_rms_backward(const void* dn, const float* x, const float* r, const float* norm, float* dx, float* dnorm,
                       long rows, long D, long half) {
    FOR_TYPE(half, rms_backward((const T*)dn, x, r, norm, dx, dnorm, rows, D))
}

void puna_swiglu_forward(const void* gate_up, void* z, long rows, long F, long half) {
    FOR_TYPE(half, swiglu_forward((const T*)gate_up, (T*)z, rows, F))
}

void puna_swiglu_backward(const void* dz, const void* gate_up, void* d, void* z, long rows, long F, long half) {
    FOR_TYPE(half, swiglu_backward((const T*)dz, (const T*)gate_up, (T*)d, (T*)z, rows, F))
}

void puna_split_rotate(void* qkv, void* q, void* k, void* v, const float* cos, const float* sin, long B, long tokens,
                       long H, long K, long E, long back, long half) {
    if (back) {
        FOR_TYPE(half, (split_rotate<T, true>((T*)qkv, (T*)q, (T*)k, (T*)v, cos, sin, B, tokens, H, K, E)))
    } else {
        FOR_TYPE(half, (split_rotate<T, false>((T*)qkv, (T*)q, (T*)k, (T*)v, cos, sin, B, tokens, H, K, E)))
    }
}

void puna_cross_entropy(void* logits, const int64_t* targets, float* losses, long rows, long V, double scale,
                        int64_t ignore, long half) {
    FOR_TYPE(half, cross_entropy((T*)logits, targets, losses, rows, V, scale, ignore))
}
}
