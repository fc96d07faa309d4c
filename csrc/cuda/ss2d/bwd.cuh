// Shared by the main kernel of ss2d's backward pass and the kernels that add its parts: the portion of the work in a
// launch, and the addresses of its sums over channels and over tokens.
#pragma once

#include "cuda/ss2d/ss2d.cuh"

namespace mtlkit::cuda {

// The work of one launch of the main kernel: some images, and for every chunk some iterations over its tiles.
struct Portion {
  int first_pair, first_image, images;
  int begin, end;  // range of iterations; a chunk may have fewer
  bool first;      // the first portion of its pairs, which writes sums over tokens instead of adding to them
};

// The pixels of one chunk and direction for whose rows a portion writes parts: `pixels` pixels from `first` on, in the
// order of the pair. Scans that go upwards visit the tiles downwards in this pass.
struct Window {
  int64_t first;
  int pixels;

  __device__ Window(const SS2D& p, const Portion& portion, int tile_tokens, int chunk, bool upwards) {
    const int first_tile = chunk * static_cast<int>(p.plan.chunk_tiles);
    const int tiles = static_cast<int>(p.plan.tiles_of(chunk));
    const int end = portion.end < tiles ? portion.end : tiles;
    first = int64_t{first_tile + (upwards ? tiles - end : portion.begin)} * tile_tokens;
    const int64_t whole = int64_t{end - portion.begin} * tile_tokens, room = p.shape.tokens() - first;
    pixels = static_cast<int>(whole < 0 ? 0 : whole < room ? whole : room);
  }
};

// The offset in `parts` of the rows of a part, an image of the portion, a scan and a chunk.
__device__ inline int64_t rows_before(const SS2D& p, int part, int image, int scan, int chunk, int tile_tokens) {
  const int64_t group = (part * p.plan.images + image) * p.plan.scans() + scan;
  const int64_t tiles = chunk * (p.plan.window_tiles < p.plan.chunk_tiles ? p.plan.window_tiles : p.plan.chunk_tiles);
  return (group * p.plan.pixels + tiles * tile_tokens) * p.shape.row();
}

// The addresses of one scan's sums over tokens. Each image and chunk is one part; the first part is stored in the
// gradients themselves. Rows, one per channel, have N, R, 1 and 1 floats.
struct SumsOverTokens {
  float *A_logs, *weight, *bias, *skip;

  __device__ SumsOverTokens(const SS2DBackward& params, int part, int scan, int direction) {
    const SS2DShape& shape = params.scan.shape;
    int64_t row = direction * shape.channels;
    A_logs = params.dA_logs;
    weight = params.ddt_weight;
    bias = params.ddt_bias;
    skip = params.dDs;
    if (part > 0) {
      const int64_t rows = params.scan.plan.scans() * shape.channels;
      row = scan * shape.channels;
      A_logs = params.sums + (part - 1) * rows * (shape.states + shape.rank + 2);
      weight = A_logs + rows * shape.states;
      bias = weight + rows * shape.rank;
      skip = bias + rows;
    }
    A_logs += row * shape.states;
    weight += row * shape.rank;
    bias += row;
    skip += row;
  }
};

// Launch the kernels of sums.cu.
int launch_sum_rows(const SS2DBackward& params, const SS2DGeometry& geometry, const Portion& portion, int tile_tokens,
                    void* stream);
int launch_sum_over_tokens(const SS2DBackward& params, const Portion& portion, void* stream);

}  // namespace mtlkit::cuda
