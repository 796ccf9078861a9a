// E4M3 numbers with one float32 scale a tile, equal in every element to ablate/components/fp8/quantise.py.
// Compiled with -ffp-contract=off: a fused multiply-add would round differently.

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LARGEST 448.0f          // of E4M3
#define MIN_SCALE 0x1p-126f     // smallest normal float32: x / scale cannot overflow
#define MIN_NORMAL 0x1p-6f      // of E4M3
#define MAX_COLUMNS 512         // of a strip that is worked on at a time: its maxima and scales stay in L1

static inline uint32_t bits_of(float x) { uint32_t b; memcpy(&b, &x, 4); return b; }
static inline float float_of(uint32_t b) { float x; memcpy(&x, &b, 4); return x; }
static inline uint32_t magnitude(float x) { return bits_of(x) & 0x7fffffffu; }

// The scale of a tile whose largest magnitude has these bits. As unsigned numbers NaN > inf > all others.
static inline float scale_of(uint32_t largest, int power_of_two) {
    float scale = float_of(largest) / LARGEST;
    scale = scale < MIN_SCALE ? MIN_SCALE : scale;
    if (power_of_two) {
        float up = float_of((bits_of(scale) + 0x7fffffu) & 0x7f800000u);
        scale = up + scale * 0.0f;  // inf and NaN stay what they are not allowed to hide
    }
    return scale;
}

// The largest magnitude of a tile, whose rows are r0 to r1 of a matrix and begin at x in each.
static inline uint32_t largest_of(const float *x, int64_t r0, int64_t r1, int64_t columns, int64_t width) {
    uint32_t largest = 0;
    for (int64_t r = r0; r < r1; r++) {
        const float *row = x + r * columns;
        for (int64_t c = 0; c < width; c++) {
            uint32_t a = magnitude(row[c]);
            largest = a > largest ? a : largest;
        }
    }
    return largest;
}

// |x| / scale, at most the largest number of E4M3.
static inline float scaled(float x, float scale) {
    float a = float_of(magnitude(x)) / scale;
    return a > LARGEST ? LARGEST : a;
}

// The bits of 2^exponent of a, at least that of the smallest normal number; and 1.5 * 2^20 times it, which, added to a,
// leaves no bit below the last of E4M3's three: the sum is rounded to nearest even.
static inline uint32_t power_of(float a) {
    uint32_t power = bits_of(a) & 0x7f800000u;
    return power < bits_of(MIN_NORMAL) ? bits_of(MIN_NORMAL) : power;
}
static inline float shift_of(uint32_t power) { return float_of((power + (20u << 23)) | 0x400000u); }

// x / scale to nearest even in E4M3, as a float32.
static inline float rounded(float x, float scale) {
    float a = scaled(x, scale), shift = shift_of(power_of(a));
    return float_of(bits_of((a + shift) - shift) | (bits_of(x) & 0x80000000u));
}

// The same as its code. The code of a number in a tile with a NaN scale means nothing.
static inline uint8_t encode(float x, float scale) {
    float a = scaled(x, scale);
    uint32_t power = power_of(a), units = bits_of(a + shift_of(power)) - bits_of(shift_of(power));
    return (uint8_t)((bits_of(x) >> 31 << 7) | (((power - bits_of(MIN_NORMAL)) >> 20) + units));
}

static inline float decode(uint8_t code) {
    uint32_t sign = (uint32_t)(code & 0x80) << 24, a = code & 0x7f;
    float normal = float_of((a << 20) + (120u << 23));
    float subnormal = (float)(int32_t)a * 0x1p-9f;
    float x = a < 8 ? subnormal : normal;
    // NaN reads 480: a tile that holds one has a NaN scale.
    return float_of(bits_of(x) | sign);
}

// x (n, rows, columns) in tiles of tile_rows x tile_columns, the last ones smaller; scales in the order of the tiles.
void quantise_tiles(const float *x, int64_t n, int64_t rows, int64_t columns, int64_t tile_rows, int64_t tile_columns,
                    int power_of_two, uint8_t *codes, float *scales) {
    for (int64_t m = 0; m < n; m++, x += rows * columns, codes += rows * columns)
        for (int64_t r0 = 0; r0 < rows; r0 += tile_rows)
            for (int64_t c0 = 0; c0 < columns; c0 += tile_columns) {
                int64_t r1 = r0 + tile_rows < rows ? r0 + tile_rows : rows;
                int64_t width = c0 + tile_columns < columns ? tile_columns : columns - c0;
                float scale = scale_of(largest_of(x + c0, r0, r1, columns, width), power_of_two);
                *scales++ = scale;
                for (int64_t r = r0; r < r1; r++) {
                    const float *row = x + r * columns + c0;
                    uint8_t *out = codes + r * columns + c0;
                    for (int64_t c = 0; c < width; c++) out[c] = encode(row[c], scale);
                }
            }
}

void dequantise_tiles(const uint8_t *codes, const float *scales, int64_t n, int64_t rows, int64_t columns,
                      int64_t tile_rows, int64_t tile_columns, float *out) {
    for (int64_t m = 0; m < n; m++, codes += rows * columns, out += rows * columns)
        for (int64_t r0 = 0; r0 < rows; r0 += tile_rows)
            for (int64_t c0 = 0; c0 < columns; c0 += tile_columns) {
                int64_t r1 = r0 + tile_rows < rows ? r0 + tile_rows : rows;
                int64_t width = c0 + tile_columns < columns ? tile_columns : columns - c0;
                float scale = *scales++;
                for (int64_t r = r0; r < r1; r++) {
                    const uint8_t *row = codes + r * columns + c0;
                    float *to = out + r * columns + c0;
                    for (int64_t c = 0; c < width; c++) to[c] = decode(row[c]) * scale;
                }
            }
}

// What quantise_tiles and dequantise_tiles give one after the other, without the codes.
void round_trip_tiles(const float *x, int64_t n, int64_t rows, int64_t columns, int64_t tile_rows, int64_t tile_columns,
                      int power_of_two, float *out) {
    for (int64_t m = 0; m < n; m++, x += rows * columns, out += rows * columns)
        for (int64_t r0 = 0; r0 < rows; r0 += tile_rows)
            for (int64_t c0 = 0; c0 < columns; c0 += tile_columns) {
                int64_t r1 = r0 + tile_rows < rows ? r0 + tile_rows : rows;
                int64_t width = c0 + tile_columns < columns ? tile_columns : columns - c0;
                float scale = scale_of(largest_of(x + c0, r0, r1, columns, width), power_of_two);
                for (int64_t r = r0; r < r1; r++) {
                    const float *row = x + r * columns + c0;
                    float *to = out + r * columns + c0;
                    for (int64_t c = 0; c < width; c++) to[c] = rounded(row[c], scale) * scale;
                }
            }
}

// The scales of one strip of rows, for up to MAX_COLUMNS columns from x on: `group` neighbouring columns share one.
static inline void column_scales(const float *x, int64_t columns, int64_t width, int64_t r0, int64_t r1, int64_t group,
                                 int power_of_two, float *scales) {
    uint32_t largest[MAX_COLUMNS];
    memset(largest, 0, sizeof largest);
    for (int64_t r = r0; r < r1; r++) {
        const float *row = x + r * columns;
        for (int64_t c = 0; c < width; c++) {
            uint32_t a = magnitude(row[c]);
            largest[c] = a > largest[c] ? a : largest[c];
        }
    }
    for (int64_t c0 = 0; group > 1 && c0 < width; c0 += group) {
        int64_t c1 = c0 + group < width ? c0 + group : width;
        uint32_t most = 0;
        for (int64_t c = c0; c < c1; c++) most = largest[c] > most ? largest[c] : most;
        for (int64_t c = c0; c < c1; c++) largest[c] = most;
    }
    for (int64_t c = 0; c < width; c++) scales[c] = scale_of(largest[c], power_of_two);
}

// x (rows, columns) in tiles of `group` columns: tile t is rows starts[t] .. starts[t] + lengths[t]; scales (n, columns).
// MAX_COLUMNS is a multiple of every group.
void quantise_columns(const float *x, int64_t columns, int64_t n, const int64_t *starts, const int64_t *lengths,
                      int64_t group, int power_of_two, uint8_t *codes, float *scales) {
    for (int64_t t = 0; t < n; t++, scales += columns)
        for (int64_t c0 = 0; c0 < columns; c0 += MAX_COLUMNS) {
            int64_t width = c0 + MAX_COLUMNS < columns ? MAX_COLUMNS : columns - c0, end = starts[t] + lengths[t];
            column_scales(x + c0, columns, width, starts[t], end, group, power_of_two, scales + c0);
            for (int64_t r = starts[t]; r < end; r++) {
                const float *row = x + r * columns + c0;
                uint8_t *out = codes + r * columns + c0;
                for (int64_t c = 0; c < width; c++) out[c] = encode(row[c], scales[c0 + c]);
            }
        }
}

void round_trip_columns(const float *x, int64_t columns, int64_t n, const int64_t *starts, const int64_t *lengths,
                        int64_t group, int power_of_two, float *out) {
    float scales[MAX_COLUMNS];
    for (int64_t t = 0; t < n; t++)
        for (int64_t c0 = 0; c0 < columns; c0 += MAX_COLUMNS) {
            int64_t width = c0 + MAX_COLUMNS < columns ? MAX_COLUMNS : columns - c0, end = starts[t] + lengths[t];
            column_scales(x + c0, columns, width, starts[t], end, group, power_of_two, scales);
            for (int64_t r = starts[t]; r < end; r++) {
                const float *row = x + r * columns + c0;
                float *to = out + r * columns + c0;
                for (int64_t c = 0; c < width; c++) to[c] = rounded(row[c], scales[c]) * scales[c];
            }
        }
}

void dequantise_columns(const uint8_t *codes, const float *scales, int64_t columns, int64_t n, const int64_t *starts,
                        const int64_t *lengths, float *out) {
    for (int64_t t = 0; t < n; t++, scales += columns)
        for (int64_t r = starts[t]; r < starts[t] + lengths[t]; r++) {
            const uint8_t *row = codes + r * columns;
            float *to = out + r * columns;
            for (int64_t c = 0; c < columns; c++) to[c] = decode(row[c]) * scales[c];
        }
}
