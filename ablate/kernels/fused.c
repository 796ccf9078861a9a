// Norm, gated activation and cross-entropy for float32 on a processor, each in as few passes as it has.
// Sums run in LANES partial sums that are added in one order, so that the bits do not depend on the vector unit.

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16

static inline uint32_t bits_of(float x) { uint32_t b; memcpy(&b, &x, 4); return b; }
static inline float float_of(uint32_t b) { float x; memcpy(&x, &b, 4); return x; }

static inline float total(const float *lanes) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    return sum;
}

// e^x within 2 units in the last place, as 2^n e^r with |r| <= ln(2) / 2; 0 below -87, and no larger than e^88. NaN stays.
static inline float exponential(float x) {
    float y = x > 88.0f ? 88.0f : x;
    float shifted = y * 1.44269504f + 0x1.8p23f, n = shifted - 0x1.8p23f;
    float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    float power = float_of((bits_of(shifted) << 23) + 0x3f800000u);
    float value = p * power;
    return y < -87.0f ? 0.0f : value;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// y = x w / rms(x); inverse (n): 1 / rms of each row.
void rms_norm(const float *x, const float *w, int64_t n, int64_t dim, float epsilon, float *y, float *inverse) {
    for (int64_t r = 0; r < n; r++, x += dim, y += dim) {
        float lanes[LANES] = {0};
        int64_t c = 0;
        for (; c + LANES <= dim; c += LANES)
            for (int i = 0; i < LANES; i++) lanes[i] += x[c + i] * x[c + i];
        for (; c < dim; c++) lanes[c % LANES] += x[c] * x[c];
        float scale = 1.0f / sqrtf(total(lanes) / (float)dim + epsilon);
        inverse[r] = scale;
        for (c = 0; c < dim; c++) y[c] = x[c] * scale * w[c];
    }
}

// Gradients of x (n, dim) and of w (dim, zero before) from that of y.
void rms_norm_backward(const float *g, const float *x, const float *w, const float *inverse, int64_t n, int64_t dim,
                       float *gx, float *gw) {
    for (int64_t r = 0; r < n; r++, x += dim, g += dim, gx += dim) {
        float lanes[LANES] = {0}, scale = inverse[r];
        int64_t c = 0;
        for (; c + LANES <= dim; c += LANES)
            for (int i = 0; i < LANES; i++) lanes[i] += g[c + i] * w[c + i] * x[c + i];
        for (; c < dim; c++) lanes[c % LANES] += g[c] * w[c] * x[c];
        float along = total(lanes) / (float)dim * scale * scale;
        for (c = 0; c < dim; c++) {
            gw[c] += g[c] * x[c] * scale;
            gx[c] = (g[c] * w[c] - x[c] * along) * scale;
        }
    }
}

// y (n, hidden) = silu(gate) up, of gate_up (n, 2 hidden): the gate first.
void swiglu(const float *gate_up, int64_t n, int64_t hidden, float *y) {
    for (int64_t r = 0; r < n; r++, gate_up += 2 * hidden, y += hidden)
        for (int64_t c = 0; c < hidden; c++) y[c] = gate_up[c] * sigmoid(gate_up[c]) * gate_up[hidden + c];
}

void swiglu_backward(const float *g, const float *gate_up, int64_t n, int64_t hidden, float *out) {
    for (int64_t r = 0; r < n; r++, g += hidden, gate_up += 2 * hidden, out += 2 * hidden)
        for (int64_t c = 0; c < hidden; c++) {
            float gate = gate_up[c], up = gate_up[hidden + c], s = sigmoid(gate);
            out[c] = g[c] * up * s * (1.0f + gate * (1.0f - s));
            out[hidden + c] = g[c] * gate * s;
        }
}

// The logits (n, classes) become the probabilities in place; losses (n): -ln of the target's, 0 where it is negative.
// A number that is not finite leaves its row, and with it the loss, NaN.
void cross_entropy(float *logits, const int64_t *targets, int64_t n, int64_t classes, float *losses) {
    for (int64_t r = 0; r < n; r++, logits += classes) {
        float most[LANES], lanes[LANES] = {0};
        for (int i = 0; i < LANES; i++) most[i] = -FLT_MAX;
        int64_t c = 0;
        for (; c + LANES <= classes; c += LANES)
            for (int i = 0; i < LANES; i++) most[i] = logits[c + i] > most[i] ? logits[c + i] : most[i];
        for (; c < classes; c++) most[c % LANES] = logits[c] > most[c % LANES] ? logits[c] : most[c % LANES];
        float largest = most[0];
        for (int i = 1; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
        float target = targets[r] < 0 ? 0.0f : logits[targets[r]] - largest;
        for (c = 0; c + LANES <= classes; c += LANES)
            for (int i = 0; i < LANES; i++) {
                logits[c + i] = exponential(logits[c + i] - largest);
                lanes[i] += logits[c + i];
            }
        for (; c < classes; c++) {
            logits[c] = exponential(logits[c] - largest);
            lanes[c % LANES] += logits[c];
        }
        float sum = total(lanes);
        losses[r] = targets[r] < 0 ? 0.0f : logf(sum) - target;
        float scale = 1.0f / sum;
        for (c = 0; c < classes; c++) logits[c] *= scale;
    }
}

// The gradient of the logits: each row of probabilities less one at its target, times `scale`; 0 without a target.
void cross_entropy_backward(const float *probabilities, const int64_t *targets, int64_t n, int64_t classes, float scale,
                            float *out) {
    for (int64_t r = 0; r < n; r++, probabilities += classes, out += classes) {
        float factor = targets[r] < 0 ? 0.0f : scale;
        for (int64_t c = 0; c < classes; c++) out[c] = probabilities[c] * factor;
        if (targets[r] >= 0) out[targets[r]] -= factor;
    }
}
