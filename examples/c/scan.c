/* Scans an image in four directions from C, with neither Python nor PyTorch:
 *
 *   cc -std=c99 scan.c -I "$INCLUDE" -L "$LIB" -lmtlkit -Wl,-rpath,"$LIB" -o scan && ./scan 2
 *
 * INCLUDE and LIB are the folders that mtlkit.deploy.include_path() and mtlkit.deploy.library_path("c") name. */
#include <stdio.h>
#include <stdlib.h>

#include "mtlkit.h"

enum { B = 1, H = 14, W = 10, D = 24, N = 8, R = 2, ROW = R + 2 * N };

/* Numbers in place of those of a trained layer. */
static float* fill(int64_t count, float least, float most) {
  static unsigned state = 1;
  float* numbers = malloc(count * sizeof *numbers);
  if (!numbers) exit(1);
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    numbers[i] = least + (most - least) * (float)(state >> 8) / 16777216.0f;
  }
  return numbers;
}

int main(int argc, char** argv) {
  const int threads = argc > 1 ? atoi(argv[1]) : 1;
  if (mtlkit_interface_version() != MTLKIT_INTERFACE_VERSION) {
    fprintf(stderr, "the library has another interface than mtlkit.h\n");
    return 1;
  }

  mtlkit_ss2d_arguments call = {
      .u = {fill(B * H * W * D, -1, 1), 4, {B, H, W, D}},
      .x_dbl = {fill(B * H * W * 4 * ROW, -1, 1), 5, {B, H, W, 4, ROW}},
      .dt_weight = {fill(4 * D * R, -0.5f, 0.5f), 3, {4, D, R}},
      .dt_bias = {fill(4 * D, -4, -2), 2, {4, D}},
      .A_logs = {fill(4 * D * N, 0, 2), 2, {4 * D, N}},
      .Ds = {fill(4 * D, 0, 1), 1, {4 * D}},
      .norm = 1,
      .eps = 1e-5f,
      .z = {fill(B * H * W * D, -1, 1), 4, {B, H, W, D}},
      .y = {fill(B * H * W * D, 0, 0), 4, {B, H, W, D}},
  };

  mtlkit_pool* pool = NULL; /* NULL would do for one thread */
  if (mtlkit_pool_create(threads, &pool) != MTLKIT_OK || mtlkit_ss2d(&call, pool) != MTLKIT_OK) {
    fprintf(stderr, "mtlkit: %s\n", mtlkit_last_error());
    mtlkit_pool_destroy(pool);
    return 1;
  }

  double sum = 0, squares = 0;
  for (int i = 0; i < B * H * W * D; ++i) {
    sum += call.y.data[i];
    squares += call.y.data[i] * call.y.data[i];
  }
  printf("mtlkit %s, %s, %d threads: sum %.4f, sum of squares %.4f\n", mtlkit_version(), mtlkit_isa(),
         mtlkit_pool_threads(pool), sum, squares);

  call.z.sizes[3] = D - 1; /* a wrong shape is an error that names the argument */
  if (mtlkit_ss2d(&call, pool) != MTLKIT_OK) printf("%s\n", mtlkit_last_error());

  mtlkit_pool_destroy(pool);
  return 0; /* the system takes the numbers back */
}
