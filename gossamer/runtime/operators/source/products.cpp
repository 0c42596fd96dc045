// Built with -DLEVEL=plain, avx2 or avx512, and the compiler's flags for these instructions.
#include "products.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define JOINED(a, b) a##b
#define NAME(level) JOINED(products_, level)

namespace {

#if defined(__AVX512VPOPCNTDQ__)

// Counts of 16 outputs; the processor counts the bits of a word itself.
struct Counts {
  static constexpr int LANES = 16;
  __m512i words = _mm512_setzero_si512();

  void add(uint32_t x, const uint32_t *weights) {
    __m512i different = _mm512_xor_si512(_mm512_set1_epi32(int(x)), _mm512_loadu_si512(weights));
    words = _mm512_add_epi32(words, _mm512_popcnt_epi32(different));
  }
  void widen() {}
  void store(uint32_t *out) const { _mm512_storeu_si512(out, words); }
};

#elif defined(__AVX2__)

// Counts of 8 outputs: of half bytes by a table, added up in bytes, which hold 31 sums of at most 8.
struct Counts {
  static constexpr int LANES = 8;
  __m256i bytes = _mm256_setzero_si256(), words = _mm256_setzero_si256();

  void add(uint32_t x, const uint32_t *weights) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15);
    __m256i given = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(weights));
    __m256i different = _mm256_xor_si256(_mm256_set1_epi32(int(x)), given);
    __m256i right = _mm256_shuffle_epi8(table, _mm256_and_si256(different, low));
    __m256i left = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(different, 4), low));
    bytes = _mm256_add_epi8(bytes, _mm256_add_epi8(left, right));
  }
  void widen() {
    __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
    words = _mm256_add_epi32(words, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    bytes = _mm256_setzero_si256();
  }
  void store(uint32_t *out) const { _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), words); }
};

#elif defined(__ARM_NEON)

// Counts of 4 outputs.
struct Counts {
  static constexpr int LANES = 4;
  uint8x16_t bytes = vdupq_n_u8(0);
  uint32x4_t words = vdupq_n_u32(0);

  void add(uint32_t x, const uint32_t *weights) {
    uint32x4_t different = veorq_u32(vdupq_n_u32(x), vld1q_u32(weights));
    bytes = vaddq_u8(bytes, vcntq_u8(vreinterpretq_u8_u32(different)));
  }
  void widen() {
    words = vaddq_u32(words, vpaddlq_u16(vpaddlq_u8(bytes)));
    bytes = vdupq_n_u8(0);
  }
  void store(uint32_t *out) const { vst1q_u32(out, words); }
};

#else

struct Counts {
  static constexpr int LANES = 4;
  uint32_t words[LANES] = {};

  void add(uint32_t x, const uint32_t *weights) {
    for (int lane = 0; lane < LANES; ++lane) words[lane] += uint32_t(__builtin_popcount(x ^ weights[lane]));
  }
  void widen() {}
  void store(uint32_t *out) const {
    for (int lane = 0; lane < LANES; ++lane) out[lane] = words[lane];
  }
};

#endif

constexpr size_t MOST_ADDED = 31;

template <int N>
void count_places(const uint32_t *x, ptrdiff_t stride, const ptrdiff_t *offsets, const uint32_t *weights,
                  const int32_t *rows, size_t steps, uint32_t *out) {
  Counts counts[N];
  for (size_t start = 0; start < steps; start += MOST_ADDED) {
    const size_t end = start + MOST_ADDED < steps ? start + MOST_ADDED : steps;
    for (size_t step = start; step < end; ++step) {
      const uint32_t *row = weights + ptrdiff_t(rows[step]) * Counts::LANES, *word = x + offsets[step];
      for (int place = 0; place < N; ++place) counts[place].add(word[place * stride], row);
    }
    for (int place = 0; place < N; ++place) counts[place].widen();
  }
  for (int place = 0; place < N; ++place) counts[place].store(out + place * Counts::LANES);
}

void count(const uint32_t *x, ptrdiff_t stride, const ptrdiff_t *offsets, const uint32_t *weights,
           const int32_t *rows, size_t steps, int places, uint32_t *out) {
  if (places == PLACES) return count_places<PLACES>(x, stride, offsets, weights, rows, steps, out);
  for (int place = 0; place < places; ++place)
    count_places<1>(x + place * stride, stride, offsets, weights, rows, steps, out + place * Counts::LANES);
}

void pack_planes(const float *x, size_t stride, const float *signs, const float *limits, int channels, size_t places,
                 uint32_t *out) {
  for (size_t p = 0; p < places; ++p) out[p] = 0;
  for (int c = 0; c < channels; ++c) {
    const float sign = signs[c], limit = limits[c], *plane = x + size_t(c) * stride;
    for (size_t p = 0; p < places; ++p) out[p] |= uint32_t(sign * plane[p] >= limit) << c;
  }
}

uint32_t pack_row(const float *x, const float *signs, const float *limits, int channels) {
  uint32_t word = 0;
  for (int c = 0; c < channels; ++c) word |= uint32_t(signs[c] * x[c] >= limits[c]) << c;
  return word;
}

void finish(const uint32_t *counts, int32_t terms, const float *scales, const float *bias, int places, int lanes,
            ptrdiff_t across, ptrdiff_t down, float *out) {
  constexpr int LANES = Counts::LANES;
  float made[PLACES * LANES];
  for (int place = 0; place < places; ++place)
    for (int lane = 0; lane < LANES; ++lane)
      made[place * LANES + lane] =
          scales[lane] * float(terms - 2 * int32_t(counts[place * LANES + lane])) + bias[lane];
  if (down == 1 && places == PLACES) {
    for (int lane = 0; lane < lanes; ++lane)
      for (int place = 0; place < PLACES; ++place) out[lane * across + place] = made[place * LANES + lane];
    return;
  }
  for (int place = 0; place < places; ++place)
    for (int lane = 0; lane < lanes; ++lane) out[lane * across + place * down] = made[place * LANES + lane];
}

}  // namespace

extern const Products NAME(LEVEL) = {Counts::LANES, pack_planes, pack_row, count, finish};
