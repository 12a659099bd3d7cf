// The three matrix products of a linear layer with fp32 arithmetic, for any instruction set. x, y and their gradients
// are fp32 or bf16 (widened on the way in, rounded on the way out), weights and their gradients fp32.
//
//     y = x Wᵀ      dx = dy W      dW += dyᵀ x
//
// All are one product: a left operand whose numbers are broadcast one by one, times a right operand packed in panels
// as wide as a register tile:
//
//     panels  (columns/WIDTH, sums, WIDTH)     zero beyond the last column
//
// A panel of SUMS steps stays in the first-level cache while it meets a block of the left operand, which stays in the
// second. Each sum is added up in one order, whatever the number of threads.

#include "tiles.h"

// Which are faster than PyTorch's: 1 for bf16, 2 for fp32.
extern "C" int products_run_here() {
    int which = 0;
#if !defined(__AVX512BF16__) && !defined(__AMX_BF16__) && !defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    which |= 1;
#endif
#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
    which |= 2;
#endif
    return which;
}

extern "C" int products_panel_width() { return WIDTH; }

namespace {

constexpr long SUMS = 256;     // summed at a time
constexpr long ROWS = 96;      // of a block of x
constexpr long COLUMNS = 512;  // of a block of y
constexpr long STRETCH = 512;  // rows packed at a time for dW
constexpr long OUTPUTS = 48;   // rows of a block of dW

// out (M, columns) += left (M, steps) times a panel; from zero if `first`.
template <int M>
void add_tile(float* out, long row, long columns, bool first, const float* left, long left_row, long left_step,
              const float* panel, long steps) {
    float whole[M * WIDTH];
    if (columns < WIDTH) {
        for (int i = 0; i < M && !first; i++) std::copy_n(out + i * row, columns, whole + i * WIDTH);
        add_tile<M>(whole, WIDTH, WIDTH, first, left, left_row, left_step, panel, steps);
        for (int i = 0; i < M; i++) std::copy_n(whole + i * WIDTH, columns, out + i * row);
        return;
    }
    Tile<M, VECTORS> tile;
    first ? tile.clear() : tile.load(out, row);
    tile.add(left, left_row, left_step, panel, WIDTH, steps);
    tile.store(out, row);
}

template <class T>
void multiply(const T* x, const float* panels, T* out, long rows, long sums, long outputs) {
    constexpr bool is_narrow = !std::is_same_v<T, float>;
#pragma omp parallel if (rows * sums * outputs > ALONE)
    {
        Buffer buffer(is_narrow ? ROWS * (SUMS + COLUMNS) : 0);
        float *wide = buffer.take(ROWS * SUMS), *partial = buffer.take(ROWS * COLUMNS);
#pragma omp for collapse(2) schedule(dynamic)
        for (long start = 0; start < rows; start += ROWS)
            for (long first = 0; first < outputs; first += COLUMNS) {
                const long height = std::min(ROWS, rows - start), end = std::min(first + COLUMNS, outputs);
                float* y;
                long y_row;
                if constexpr (is_narrow)
                    y = partial, y_row = COLUMNS;
                else
                    y = out + start * outputs + first, y_row = outputs;
                for (long k = 0; k < sums; k += SUMS) {
                    const long steps = std::min(SUMS, sums - k);
                    const float* left;
                    long left_row;
                    if constexpr (is_narrow) {
                        for (long r = 0; r < height; r++) convert(x + (start + r) * sums + k, wide + r * SUMS, steps);
                        left = wide, left_row = SUMS;
                    } else {
                        left = x + start * sums + k, left_row = sums;
                    }
                    for (long o = first; o < end; o += WIDTH)
                        for (long r = 0; r < height; r += HEIGHT)
                            by_height(height - r, [&](auto M) {
                                add_tile<M>(y + r * y_row + o - first, y_row, end - o, k == 0, left + r * left_row,
                                            left_row, 1, panels + o * sums + k * WIDTH, steps);
                            });
                }
                if constexpr (is_narrow)
                    for (long r = 0; r < height; r++)
                        convert(y + r * y_row, out + (start + r) * outputs + first, end - first);
            }
    }
}

template <class T>
void add_gradient(const T* dy, const T* x, float* gradient, long rows, long O, long I, bool first) {
    const long most = std::min(STRETCH, rows);
    Buffer shared(most * round_up(I, WIDTH));
    float* right = shared.data;
#pragma omp parallel if (rows * O * I > ALONE)
    {
        const long tall = most * HEIGHT + LANES;
        Buffer buffer(OUTPUTS / HEIGHT * tall);
        float* left = buffer.data;
        for (long start = 0; start < rows; start += STRETCH) {
            const long steps = std::min(STRETCH, rows - start);
#pragma omp for schedule(static)
            for (long i = 0; i < I; i += WIDTH)
                for (long k = 0; k < steps; k++) {
                    const T* in = x + (start + k) * I + i;
                    float* out = right + i * steps + k * WIDTH;
                    if (i + WIDTH <= I) {
                        for (int j = 0; j < VECTORS; j++) store(out + j * LANES, load(in + j * LANES));
                    } else {
                        convert(in, out, I - i);
                        std::fill(out + (I - i), out + WIDTH, 0.f);
                    }
                }
#pragma omp for schedule(dynamic)
            for (long o = 0; o < O; o += OUTPUTS) {
                const long outputs = std::min(OUTPUTS, O - o);
                const auto pack_step = [&](long k, const auto* row) {  // whole vectors: the next step overwrites the rest
                    for (long p = 0; p < OUTPUTS; p += HEIGHT)
                        for (int t = 0; t < HEIGHT; t += LANES)
                            store(left + p / HEIGHT * tall + k * HEIGHT + t, load(row + p + t));
                };
                float wide[OUTPUTS + LANES] = {};
                for (long k = 0; k < steps; k++) {  // left: (OUTPUTS/HEIGHT, steps, HEIGHT)
                    const T* row = dy + (start + k) * O + o;
                    if (o + OUTPUTS + LANES <= O) {
                        pack_step(k, row);
                    } else {
                        convert(row, wide, outputs);
                        pack_step(k, wide);
                    }
                }
                for (long k = 0; k < steps; k += SUMS)
                    for (long i = 0; i < I; i += WIDTH)
                        for (long p = 0; p < outputs; p += HEIGHT)
                            by_height(outputs - p, [&](auto M) {
                                add_tile<M>(gradient + (o + p) * I + i, I, I - i, first && start + k == 0,
                                            left + p / HEIGHT * tall + k * HEIGHT, 1, HEIGHT, right + i * steps + k * WIDTH,
                                            std::min(SUMS, steps - k));
                            });
            }
        }
    }
}

// Columns [first, last) and steps [start, end) of panels (columns/WIDTH, sums, WIDTH); `at(column, k)` is the number that
// a column has at the k'th step of the sum.
template <class F>
void pack(float* panels, long first, long last, long start, long end, long sums, bool round, F at) {
#pragma omp parallel for schedule(static) if ((last - first) * (end - start) > ALONE / 64)
    for (long c = first / WIDTH * WIDTH; c < last; c += WIDTH) {
        const auto pack_step = [&](long k, long from, long to) __attribute__((always_inline)) {
            for (long t = from; t < to; t++) {
                const float w = at(c + t, k);
                panels[c * sums + k * WIDTH + t] = round ? rounded_to_bf16(w) : w;
            }
        };
        if (c >= first && c + WIDTH <= last)
            for (long k = start; k < end; k++) pack_step(k, 0, WIDTH);
        else
            for (long k = start; k < end; k++) pack_step(k, std::max(first - c, 0l), std::min(last - c, long(WIDTH)));
    }
}

}  // namespace

// Several weights of I columns side by side, `outputs` rows in all, are packed one by one: `weight` is rows
// [first, first + O) of them. Rounded to bf16 if `round`.

// weight (O, I) -> panels (outputs/WIDTH, I, WIDTH), for x Wᵀ.
extern "C" void pack_outputs(const float* weight, float* panels, long O, long I, long first, long outputs, long round) {
    const long last = first + O == outputs ? round_up(outputs, WIDTH) : first + O;  // zeros fill up the last panel
    pack(panels, first, last, 0, I, I, round,
         [=](long o, long i) { return o < first + O ? weight[(o - first) * I + i] : 0.f; });
}

// weight (O, I) -> panels (I/WIDTH, outputs, WIDTH), for dy W.
extern "C" void pack_inputs(const float* weight, float* panels, long O, long I, long first, long outputs, long round) {
    pack(panels, 0, round_up(I, WIDTH), first, first + O, outputs, round,
         [=](long i, long o) { return i < I ? weight[(o - first) * I + i] : 0.f; });
}

// out (rows, outputs) = x (rows, sums) times panels (outputs/WIDTH, sums, WIDTH).
extern "C" void multiply_fp32(const float* x, const float* panels, float* out, long rows, long sums, long outputs) {
    multiply(x, panels, out, rows, sums, outputs);
}
extern "C" void multiply_bf16(const bf16* x, const float* panels, bf16* out, long rows, long sums, long outputs) {
    multiply(x, panels, out, rows, sums, outputs);
}

// gradient (O, I) += dy (rows, O)ᵀ x (rows, I); set instead of added to if `first`.
extern "C" void add_gradient_fp32(const float* dy, const float* x, float* gradient, long rows, long O, long I,
                                  long first) {
    add_gradient(dy, x, gradient, rows, O, I, first);
}
extern "C" void add_gradient_bf16(const bf16* dy, const bf16* x, float* gradient, long rows, long O, long I,
                                  long first) {
    add_gradient(dy, x, gradient, rows, O, I, first);
}
