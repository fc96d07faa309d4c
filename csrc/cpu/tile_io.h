// Tiles: a few tokens by one vector of channels, gathered from and scattered to tensors of any layout and dtype.
#pragma once

#include "cpu/element.h"
#include "cpu/integer_math.h"

namespace mtlkit {
namespace MTLKIT_ISA {

// Converts a complete block between lines of tokens, one per channel, and vectors of channels, one per token.
template <typename T, typename E>
MTLKIT_INLINE void load_block(const typename E::Storage* data, int64_t channel_stride, Vec<T>* tile) {
  constexpr int lanes = kLanes<T>;
  Vec<T> block[lanes];
  for (int c = 0; c < lanes; ++c) block[c] = E::read(data + c * channel_stride, T{});
  transpose<T>(block);
  for (int i = 0; i < lanes; ++i) tile[i] = block[i];
}

template <typename T, typename E>
MTLKIT_INLINE void store_block(typename E::Storage* data, int64_t channel_stride, const Vec<T>* tile) {
  constexpr int lanes = kLanes<T>;
  Vec<T> block[lanes];
  for (int i = 0; i < lanes; ++i) block[i] = tile[i];
  transpose<T>(block);
  for (int c = 0; c < lanes; ++c) E::write(data + c * channel_stride, block[c]);
}

template <typename T, typename E>
void load_tile_of(const typename E::Storage* data, int64_t channel_stride, int64_t token_stride, int64_t channels,
                  int64_t tokens, Vec<T>* tile) {
  constexpr int lanes = kLanes<T>;
  if (channel_stride == 1) {
    for (int64_t t = 0; t < tokens; ++t) {
      const auto* row = data + t * token_stride;
      tile[t] = channels == lanes ? E::read(row, T{}) : read_some<T, E>(row, channels);
    }
    return;
  }
  for (int64_t t = 0; t < tokens; t += lanes) {
    const int64_t some = min(lanes, tokens - t);
    if (token_stride == 1 && channels == lanes && some == lanes) {
      load_block<T, E>(data + t, channel_stride, tile + t);
      continue;
    }
    Vec<T> block[lanes] = {};
    for (int64_t c = 0; c < channels; ++c) {
      const auto* line = data + c * channel_stride + t * token_stride;
      if (token_stride != 1) {
        typename E::Storage gathered[lanes] = {};
        for (int64_t i = 0; i < some; ++i) gathered[i] = line[i * token_stride];
        block[c] = E::read(gathered, T{});
      } else {
        block[c] = some == lanes ? E::read(line, T{}) : read_some<T, E>(line, some);
      }
    }
    transpose<T>(block);
    for (int64_t i = 0; i < some; ++i) tile[t + i] = block[i];
  }
}

template <typename T, typename E>
void store_tile_of(typename E::Storage* data, int64_t channel_stride, int64_t token_stride, int64_t channels,
                   int64_t tokens, const Vec<T>* tile) {
  constexpr int lanes = kLanes<T>;
  if (channel_stride == 1) {
    for (int64_t t = 0; t < tokens; ++t) {
      auto* row = data + t * token_stride;
      channels == lanes ? E::write(row, tile[t]) : write_some<T, E>(row, tile[t], channels);
    }
    return;
  }
  for (int64_t t = 0; t < tokens; t += lanes) {
    const int64_t some = min(lanes, tokens - t);
    if (token_stride == 1 && channels == lanes && some == lanes) {
      store_block<T, E>(data + t, channel_stride, tile + t);
      continue;
    }
    Vec<T> block[lanes] = {};
    for (int64_t i = 0; i < some; ++i) block[i] = tile[t + i];
    transpose<T>(block);
    for (int64_t c = 0; c < channels; ++c) {
      auto* line = data + c * channel_stride + t * token_stride;
      if (token_stride != 1) {
        typename E::Storage scattered[lanes];
        E::write(scattered, block[c]);
        for (int64_t i = 0; i < some; ++i) line[i * token_stride] = scattered[i];
      } else {
        some == lanes ? E::write(line, block[c]) : write_some<T, E>(line, block[c], some);
      }
    }
  }
}

// tile[t], lane c <- element (c, t) at data + c * channel_stride + t * token_stride; lanes from `channels` on are 0.
template <typename T>
void load_tile(const void* data, DType dtype, int64_t channel_stride, int64_t token_stride, int64_t channels,
               int64_t tokens, Vec<T>* tile) {
  with_element(dtype, [&](auto element) {
    using E = decltype(element);
    load_tile_of<T, E>(static_cast<const typename E::Storage*>(data), channel_stride, token_stride, channels, tokens,
                       tile);
  });
}

// The reverse of load_tile: writes only the first `channels` lanes.
template <typename T>
void store_tile(void* data, DType dtype, int64_t channel_stride, int64_t token_stride, int64_t channels, int64_t tokens,
                const Vec<T>* tile) {
  with_element(dtype, [&](auto element) {
    using E = decltype(element);
    store_tile_of<T, E>(static_cast<typename E::Storage*>(data), channel_stride, token_stride, channels, tokens, tile);
  });
}

// Prefetches the cache lines of a coming tile one by one while another tile is processed: a tile of many channels has
// more streams than the hardware prefetcher follows, and more lines than can be in flight at once. for_write is 1 if
// the tile will be written.
template <int for_write>
class Expected {
 public:
  Expected() = default;
  Expected(const void* data, DType dtype, int64_t channel_stride, int64_t token_stride, int64_t channels,
           int64_t tokens)
      : first_(static_cast<const char*>(data)), at_(first_) {
    const bool lines_of_tokens = token_stride == 1;
    streams_ = here_ = lines_of_tokens ? channels : tokens;
    stride_ = (lines_of_tokens ? channel_stride : token_stride) * size_of(dtype);
    left_ = streams_ * ceil_div((lines_of_tokens ? tokens : channels) * size_of(dtype), kLine);
  }

  // Prefetches all remaining lines.
  MTLKIT_INLINE void all() {
    while (left_ > 0) (*this)();
  }

  // Prefetches the next line, if any.
  MTLKIT_INLINE void operator()() {
    if (left_ == 0) return;
    --left_;
    __builtin_prefetch(at_, for_write);
    at_ += stride_;
    if (--here_ == 0) {
      here_ = streams_;
      at_ = first_ += kLine;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char *first_ = nullptr, *at_ = nullptr;  // of the first stream and of the next line
  int64_t streams_ = 0, here_ = 0;               // and those left at this offset
  int64_t stride_ = 0, left_ = 0;                // between streams; lines
};

// A block of channels of one image: (H, W) pixels in row-major order, one vector per pixel. The strides are those of a
// (B, D, H, W) tensor.
template <typename T>
void load_plane(const Tensor<4>& image, int64_t b, int64_t d, int64_t channels, int64_t height, int64_t width,
                Vec<T>* plane) {
  const int64_t* s = image.stride;
  const bool flat = s[2] == width * s[3];
  const int64_t rows = flat ? 1 : height, columns = flat ? height * width : width;
  for (int64_t h = 0; h < rows; ++h) {
    load_tile<T>(at(image, b * s[0] + d * s[1] + h * s[2]), image.dtype, s[1], s[3], channels, columns,
                 plane + h * columns);
  }
}

template <typename T>
void store_plane(const Tensor<4>& image, int64_t b, int64_t d, int64_t channels, int64_t height, int64_t width,
                 const Vec<T>* plane) {
  const int64_t* s = image.stride;
  const bool flat = s[2] == width * s[3];
  const int64_t rows = flat ? 1 : height, columns = flat ? height * width : width;
  for (int64_t h = 0; h < rows; ++h) {
    store_tile<T>(at(image, b * s[0] + d * s[1] + h * s[2]), image.dtype, s[1], s[3], channels, columns,
                  plane + h * columns);
  }
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
