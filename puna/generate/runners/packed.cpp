// A LLaMA's forward pass over any rows, prompts' and single tokens alike, in one call: what packed.py runs.
//
//   tokens -> rows of the embedding -> n_layers x [norm, qkv, rotate + cache, attention, wo + residual,
//                                                  norm, gate/up + SwiGLU, w2 + residual] -> norm -> head
//
// formats.h defines how weights are stored, products.h multiplies rows with them, attention.h reads the cache.

#include <sched.h>

#include <atomic>
#include <cstdlib>
#include <vector>

#include "attention.h"
#include "model.h"
#include "products.h"

#if defined(_OPENMP)  // From its runtime. Its header is not included: Apple's clang has none.
extern "C" int omp_get_max_threads(void);
extern "C" int omp_get_num_threads(void);
extern "C" int omp_get_thread_num(void);
#else
static int omp_get_max_threads() { return 1; }
static int omp_get_num_threads() { return 1; }
static int omp_get_thread_num() { return 0; }
#endif

// A barrier after each phase of a step. Threads spin, as the next phase is microseconds away, and yield when a
// thread has lost its core. `next` is the first portion of the current phase's work that no thread has taken.
struct Meeting {
    alignas(64) std::atomic<int> arrived{0};  // a cache line each: those who wait read `round` all the time
    alignas(64) std::atomic<int> round{0};
    alignas(64) std::atomic<long> next{0};
    void wait(int threads) {
        const int now = round.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
            arrived.store(0, std::memory_order_relaxed);
            next.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (long spins = 0; round.load(std::memory_order_acquire) == now; spins++) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
            if (spins > 20000) sched_yield();
        }
    }
};

// Memory that lives for one step.
struct Arena {
    std::vector<void*> taken;
    template <class T>
    T* take(long count) {
        taken.push_back(std::aligned_alloc(64, up(count * (long)sizeof(T) + 64, 64)));
        return (T*)taken.back();
    }
    Rows rows(long n, long groups) {
        return {take<uint32_t>(n * groups * GROUP), take<float>(n * groups), take<float>(n * groups)};
    }
    ~Arena() {
        for (void* p : taken) std::free(p);
    }
};

template <class W, class H>
static void step(const Model& model, const Batch& batch) {
    const long n = batch.rows, D = model.dim, E = model.head_dim, K = model.kv_heads;
    const long dim = up(D, GROUP), qkv_width = up((model.n_heads + 2 * K) * E, GROUP);
    const long heads_width = up(model.n_heads * E, GROUP), ffn = up(model.ffn_dim, GROUP);
    const long widest = (dim > ffn ? (dim > heads_width ? dim : heads_width) : ffn) / GROUP;
    const int most = omp_get_max_threads();
    const bool fp32 = model.cache_is_fp32;

    Arena arena;
    float *x = arena.take<float>(n * dim), *qkv = arena.take<float>(n * qkv_width);
    float *heads = arena.take<float>(n * heads_width), *hidden = arena.take<float>(n * ffn);
    std::memset(heads, 0, sizeof(float) * n * heads_width);
    std::memset(hidden, 0, sizeof(float) * n * ffn);
    const bool few = n < FEW;  // then each thread packs all rows for itself, which costs less than a barrier
    std::vector<Rows> packed;
    for (int i = 0; i < (few ? most : 1); i++) packed.push_back(arena.rows(n, widest));
    Meeting meeting;
    const Blocks blocks(n, W::ROWS), last_blocks(batch.wanted, H::ROWS);

    // What attention does at once: some consecutive rows of one sequence, one kv head.
    const long together = QUERIES / (model.n_heads / K) > 1 ? QUERIES / (model.n_heads / K) : 1;
    std::vector<long> starts;
    for (long row = 0; row < n; row++)
        if (starts.empty() || row - starts.back() == together || batch.sequences[row] != batch.sequences[row - 1])
            starts.push_back(row);
    starts.push_back(n);

#pragma omp parallel num_threads(most)
    {
        // OpenMP may start fewer threads than requested: OMP_THREAD_LIMIT, OMP_DYNAMIC.
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        const Rows mine = packed[few ? thread : 0];
        const auto share = [&](long count, auto&& work) {
            for (long i = count * thread / threads; i < count * (thread + 1) / threads; i++) work(i);
        };
        const auto pack = [&](const float* from, long stride, const float* norm, long groups) {
            const auto one = [&](long row) {
                pack_row<W>(from + row * stride, norm, model.eps, D, groups, blocks, row, mine);
            };
            if (few) {
                for (long row = 0; row < n; row++) one(row);
            } else {
                share(n, one);
                meeting.wait(threads);
            }
        };
        const auto multiply = [&](const Matrix& matrix, Then then, float* out, long stride) {
            product<W>(matrix, mine, blocks, then, out, stride, meeting.next, threads);
            meeting.wait(threads);
        };

        share(n, [&](long row) { unpack_row<H>(model.embedding, batch.tokens[row], x + row * dim); });
        meeting.wait(threads);
        for (long layer = 0; layer < model.n_layers; layer++) {
            const Layer& weights = model.layers[layer];
            pack(x, dim, weights.attention_norm, dim / GROUP);
            multiply(weights.wqkv, Then::STORE, qkv, qkv_width);
            share(n * K, [&](long i) {
                (fp32 ? rotate<float> : rotate<uint16_t>)(model, batch, layer, i / K, i % K, qkv + i / K * qkv_width);
            });
            meeting.wait(threads);
            const long tasks = ((long)starts.size() - 1) * K;
            for (long left; (left = tasks - meeting.next.fetch_add(1, std::memory_order_relaxed)) > 0;) {
                const long i = left - 1;  // from the last: later rows have more keys
                const long first = starts[i / K], count = starts[i / K + 1] - first;
                (fp32 ? attend_rows<float> : attend_rows<uint16_t>)(
                    model, batch, layer, first, count, i % K, qkv, qkv_width, heads, heads_width
                );
            }
            meeting.wait(threads);
            pack(heads, heads_width, nullptr, heads_width / GROUP);
            multiply(weights.wo, Then::ADD, x, dim);
            pack(x, dim, weights.ffn_norm, dim / GROUP);
            multiply(weights.w13, Then::SWIGLU, hidden, ffn);
            pack(hidden, ffn, nullptr, ffn / GROUP);
            multiply(weights.w2, Then::ADD, x, dim);
        }
        if (few || thread == 0)
            for (long i = 0; i < batch.wanted; i++)
                pack_row<H>(
                    x + batch.want[i] * dim, model.norm, model.eps, D, dim / GROUP, last_blocks, i, mine
                );
        meeting.wait(threads);
        if (batch.wanted)
            product<H>(
                model.output, mine, last_blocks, Then::STORE, batch.logits, model.output.rows, meeting.next, threads
            );
    }
}

extern "C" void forward(const Model* model, const Batch* batch) {
    switch (model->weights) {
        case 0: return step<Fp32, Fp32>(*model, *batch);
        case 1: return step<Bf16, Bf16>(*model, *batch);
        case 2: return step<Int8, Int8>(*model, *batch);
        case 3: return step<Int4, Int8>(*model, *batch);  // a head of 4 bits would spoil the text
    }
}

template <class W>
static void multiply(const Matrix& matrix, const float* x, long rows, float* out) {
    Arena arena;
    const Rows packed = arena.rows(rows, matrix.groups);
    const Blocks blocks(rows, W::ROWS);
    for (long row = 0; row < rows; row++)
        pack_row<W>(x + row * matrix.groups * GROUP, nullptr, 0, 0, matrix.groups, blocks, row, packed);
    std::atomic<long> next{0};
    product<W>(matrix, packed, blocks, Then::STORE, out, matrix.rows, next, 1);
}

// out (rows, matrix.rows) = x (rows, 32 * matrix.groups) times a packed matrix, as a step multiplies: for tests.
extern "C" void multiply(int weights, const Matrix* matrix, const float* x, long rows, float* out) {
    switch (weights) {
        case 0: return multiply<Fp32>(*matrix, x, rows, out);
        case 1: return multiply<Bf16>(*matrix, x, rows, out);
        case 2: return multiply<Int8>(*matrix, x, rows, out);
        case 3: return multiply<Int4>(*matrix, x, rows, out);
    }
}

// Read memory once, as a product reads its weights: the bandwidth that decoding is measured against.
extern "C" uint64_t read_all(const char* data, long bytes) {
    uint64_t found = 0;
#pragma omp parallel reduction(^ : found)
    {
        const long lines = bytes / (long)sizeof(Bits), thread = omp_get_thread_num(), threads = omp_get_num_threads();
        Bits some[4] = {};
        long i = lines * thread / threads;
        for (const long end = lines * (thread + 1) / threads; i + 4 <= end; i += 4)
            UNROLL for (int j = 0; j < 4; j++) some[j] ^= load<Bits>(data + (long)sizeof(Bits) * (i + j));
        for (int j = 0; j < LANES; j++) found ^= (some[0] ^ some[1] ^ some[2] ^ some[3])[j];
    }
    return found;
}
