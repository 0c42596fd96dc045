// The inner loops, built once for each set of instructions.
#pragma once

#include <cstddef>
#include <cstdint>

// Four places of one row at a time, as far as a row goes.
constexpr int PLACES = 4;
constexpr int MOST_LANES = 16;

struct Products {
  int lanes;  // outputs that are computed together

  // Pack 32 channels of an image: bit c of out[p] is signs[c] * x[c * stride + p] >= limits[c].
  void (*pack_planes)(const float *x, size_t stride, const float *signs, const float *limits, int channels,
                      size_t places, uint32_t *out);

  // The same of channels that lie side by side: one word.
  uint32_t (*pack_row)(const float *x, const float *signs, const float *limits, int channels);

  // Bits that differ between weights and inputs, over steps: out[place * lanes + lane]. Step s meets the word
  // x[place * stride + offsets[s]] with the words weights[rows[s] * lanes + lane].
  void (*count)(const uint32_t *x, ptrdiff_t stride, const ptrdiff_t *offsets, const uint32_t *weights,
                const int32_t *rows, size_t steps, int places, uint32_t *out);

  // The products behind such counts, of so many lanes: scales[lane] * (terms - 2 * count) + bias[lane], at
  // out[lane * across + place * down].
  void (*finish)(const uint32_t *counts, int32_t terms, const float *scales, const float *bias, int places, int lanes,
                 ptrdiff_t across, ptrdiff_t down, float *out);
};

extern const Products products_plain;
#if defined(__x86_64__)
extern const Products products_avx2;
extern const Products products_avx512;
#endif
