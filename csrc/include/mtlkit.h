/* mtlkit's operators for C and C++ programs: forward, float32, on the CPU. The library needs neither Python nor PyTorch
 * nor OpenMP. examples/c/scan.c is an example program; the formulas are those of mtlkit.ops.
 *
 * Arrays are dense, with the last dimension fastest. Images are channels-last, (B, H, W, D), except the map of task
 * interaction, (B, C, H, W). Letters: B batch, D and C channels, H x W pixels, L tokens, N states (1 to 256), R rank of
 * the time step. A batch of 0 is valid. No output may overlap an input or another output.
 *
 * Initialise each structure of arguments to zeros; an argument left at zero counts as not given. Functions return a
 * status, except those that return a name or a number. No function ends the program or throws, and all may be called
 * from any thread at any time.
 *
 * Within one version of the interface, functions and structures do not change; new functions may be added.
 */
#ifndef MTLKIT_H
#define MTLKIT_H

#include <stdint.h>

#define MTLKIT_INTERFACE_VERSION 1

#if defined(MTLKIT_BUILDING) && defined(_WIN32)
#define MTLKIT_API __declspec(dllexport)
#elif defined(MTLKIT_BUILDING)
#define MTLKIT_API __attribute__((visibility("default")))
#else
#define MTLKIT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Versions and errors ---------------------------------------------------------------------------------------- */

typedef int mtlkit_status;

enum {
  MTLKIT_OK = 0,
  MTLKIT_INVALID_ARGUMENT = 1, /* nothing has been computed */
  MTLKIT_OUT_OF_MEMORY = 2,
  MTLKIT_FAILED = 3
};

/* MTLKIT_INTERFACE_VERSION of the loaded library, and the version of mtlkit that it was built from. */
MTLKIT_API int mtlkit_interface_version(void);
MTLKIT_API const char* mtlkit_version(void);

/* The error message of this thread's last failed call, e.g. "u: expected shape (B, H, W, D) with sizes of at least 1,
 * got (2, 7, 9)"; valid until the next call fails. */
MTLKIT_API const char* mtlkit_last_error(void);

/* ---- Instruction sets -------------------------------------------------------------------------------------------- */

/* The level in use: the highest that this machine can run, or the one that the environment variable MTLKIT_CPU_ISA
 * names. */
MTLKIT_API const char* mtlkit_isa(void);

/* The levels that this machine can run, lowest first, e.g. "baseline", "avx2", "avx512"; terminated by NULL. */
MTLKIT_API const char* const* mtlkit_isa_levels(void);

MTLKIT_API mtlkit_status mtlkit_set_isa(const char* level);

/* ---- Threads ----------------------------------------------------------------------------------------------------- */

/* Operators run on the threads of a pool; without one (NULL), on the calling thread. The last bits of results
 * depend on the number of threads, and on nothing else. A call that finds the pool busy runs on the calling thread. A
 * forked process must create its own pool. */
typedef struct mtlkit_pool mtlkit_pool;

/* Creates a pool of `threads` threads, including the calling one; 0: one per processor. */
MTLKIT_API mtlkit_status mtlkit_pool_create(int threads, mtlkit_pool** pool);

/* Calls share(work, i) for i = 0, ..., shares - 1, on any threads, in any order, and returns when all have returned. */
typedef void (*mtlkit_run)(void* host, int shares, void (*share)(void* work, int i), void* work);

/* Creates a pool that uses the program's own threads: operators call `run` with `host`, and divide their work into
 * `shares` shares. */
MTLKIT_API mtlkit_status mtlkit_pool_of_host(int shares, mtlkit_run run, void* host, mtlkit_pool** pool);

MTLKIT_API int mtlkit_pool_threads(const mtlkit_pool* pool);
MTLKIT_API void mtlkit_pool_destroy(mtlkit_pool* pool);

/* ---- Arrays ------------------------------------------------------------------------------------------------------ */

#define MTLKIT_MAX_RANK 5

typedef struct mtlkit_input {
  const float* data;
  int32_t rank; /* 0: not given */
  int64_t sizes[MTLKIT_MAX_RANK];
} mtlkit_input;

typedef struct mtlkit_output {
  float* data;
  int32_t rank;
  int64_t sizes[MTLKIT_MAX_RANK];
} mtlkit_output;

typedef struct mtlkit_indices {
  const int32_t* data;
  int32_t rank;
  int64_t sizes[MTLKIT_MAX_RANK];
} mtlkit_indices;

/* ---- Operators --------------------------------------------------------------------------------------------------- */

/* The selective scan in four directions (rows, columns, both reversed), their sum, and the steps that follow it in an
 * SS2D layer:
 *
 *   y = ss2d(u, x_dbl, dt_weight, dt_bias, A_logs, Ds)
 *   y = LayerNorm(y) norm_weight + norm_bias                 if norm is not 0
 *   y = y SiLU(z)                                            if z is given, which needs norm
 */
typedef struct mtlkit_ss2d_arguments {
  mtlkit_input u;           /* (B, H, W, D) */
  mtlkit_input x_dbl;       /* (B, H, W, 4, R + 2 N): time step, B, C of each direction */
  mtlkit_input dt_weight;   /* (4, D, R) */
  mtlkit_input dt_bias;     /* (4, D) */
  mtlkit_input A_logs;      /* (4 D, N) */
  mtlkit_input Ds;          /* (4 D) */
  int32_t norm;             /* 1: with LayerNorm */
  float eps;                /* of LayerNorm, e.g. 1e-5 */
  mtlkit_input norm_weight; /* (D), may be left out */
  mtlkit_input norm_bias;   /* (D), may be left out */
  mtlkit_input z;           /* (B, H, W, C), may be left out; its channels from z_offset on are read */
  int64_t z_offset;         /* at most C - D */
  mtlkit_output y;          /* (B, H, W, D) */
} mtlkit_ss2d_arguments;

MTLKIT_API mtlkit_status mtlkit_ss2d(const mtlkit_ss2d_arguments* arguments, mtlkit_pool* pool);

/* The selective scan of mamba-ssm's selective_scan_fn, along sequences of L tokens. */
typedef struct mtlkit_selective_scan_arguments {
  mtlkit_input u;           /* (B, D, L) */
  mtlkit_input delta;       /* (B, D, L) */
  mtlkit_input A;           /* (D, N) */
  mtlkit_input B;           /* (D, N), (B, N, L) or (B, G, N, L), G groups of channels */
  mtlkit_input C;           /* as B */
  mtlkit_input D;           /* (D), may be left out */
  mtlkit_input z;           /* (B, D, L), may be left out: multiplies the output by SiLU(z) */
  mtlkit_input delta_bias;  /* (D), may be left out */
  int32_t delta_softplus;   /* 1: delta + delta_bias goes through softplus */
  mtlkit_output out;        /* (B, D, L) */
  mtlkit_output last_state; /* (B, D, N), may be left out */
} mtlkit_selective_scan_arguments;

MTLKIT_API mtlkit_status mtlkit_selective_scan(const mtlkit_selective_scan_arguments* arguments, mtlkit_pool* pool);

/* The selective scan along any orders of L tokens, with the time step and the parameters of ss2d. */
typedef struct mtlkit_directional_scan_arguments {
  mtlkit_input u;             /* (B, L, D), which the K directions share, or (B, K, L, D) */
  mtlkit_input x_dbl;         /* (B, L, K, R + 2 N) */
  mtlkit_input dt_weight;     /* (K, D, R) */
  mtlkit_input dt_bias;       /* (K, D) */
  mtlkit_input A_logs;        /* (K D, N) */
  mtlkit_input Ds;            /* (K D) */
  mtlkit_indices order;       /* (K, T) or (B, K, T), the token of each step; a direction visits each at most once */
  mtlkit_indices seq_idx;     /* (B, L), may be left out: where it changes between steps, the state is reset to zeros */
  mtlkit_input initial_state; /* (B, K, D, N), may be left out: zeros */
  int32_t merge;              /* 1: y is the sum over the directions */
  mtlkit_output y;            /* (B, K, L, D), with merge (B, L, D); 0 for tokens that are not visited */
  mtlkit_output last_state;   /* (B, K, D, N), may be left out */
} mtlkit_directional_scan_arguments;

MTLKIT_API mtlkit_status mtlkit_directional_scan(const mtlkit_directional_scan_arguments* arguments, mtlkit_pool* pool);

/* The causal depthwise convolution of Mamba's block: y[t] = bias + sum_i weight[i] x[t - (w - 1) + i], then SiLU. */
typedef struct mtlkit_causal_conv1d_arguments {
  mtlkit_input x;              /* (B, L, C); its channels from offset on are read */
  mtlkit_input weight;         /* (D, w), w from 2 to 4 */
  mtlkit_input bias;           /* (D), may be left out */
  mtlkit_indices seq_idx;      /* (B, L), may be left out: tokens of other sequences count as zeros */
  mtlkit_input initial_states; /* (B, D, w - 1), the tokens before x, may be left out: zeros; not with seq_idx */
  int64_t offset;              /* at most C - D */
  int32_t silu;                /* 1: SiLU follows */
  mtlkit_output y;             /* (B, L, D) */
  mtlkit_output last_states;   /* (B, D, w - 1), the last tokens, may be left out */
} mtlkit_causal_conv1d_arguments;

MTLKIT_API mtlkit_status mtlkit_causal_conv1d(const mtlkit_causal_conv1d_arguments* arguments, mtlkit_pool* pool);

/* y = SiLU(depthwise 3 x 3 convolution of x, padded by 1, + bias) */
typedef struct mtlkit_dwconv_silu_arguments {
  mtlkit_input x;      /* (B, H, W, C); its channels from offset on are read */
  mtlkit_input weight; /* (D, 1, 3, 3) */
  mtlkit_input bias;   /* (D), may be left out */
  int64_t offset;      /* at most C - D */
  mtlkit_output y;     /* (B, H, W, D) */
} mtlkit_dwconv_silu_arguments;

MTLKIT_API mtlkit_status mtlkit_dwconv_silu(const mtlkit_dwconv_silu_arguments* arguments, mtlkit_pool* pool);

/* y = (LayerNorm(x) weight + bias) SiLU(z) */
typedef struct mtlkit_norm_gate_arguments {
  mtlkit_input x;      /* (..., D) */
  mtlkit_input weight; /* (D), may be left out */
  mtlkit_input bias;   /* (D), may be left out */
  mtlkit_input z;      /* (..., D), may be left out */
  float eps;           /* e.g. 1e-5 */
  mtlkit_output y;     /* (..., D) */
} mtlkit_norm_gate_arguments;

MTLKIT_API mtlkit_status mtlkit_norm_gate(const mtlkit_norm_gate_arguments* arguments, mtlkit_pool* pool);

/* A level of task interaction, TIM and UPA, in inference: a map x and a vector f enhance each other, weighted by gates.
 * F entries of f, P projected channels, S signals: 3 (alignment, energy, spread) if seg_proj and clf_proj are given,
 * else 2 variances. */
typedef struct mtlkit_task_interaction_arguments {
  mtlkit_input x;               /* (B, C, H, W) */
  mtlkit_input f;               /* (B, F) */
  mtlkit_input proj_weight;     /* (P, C) */
  mtlkit_input proj_bias;       /* (P) */
  mtlkit_input attn;            /* (C), may be left out: the pixels are weighted by softmax(attn x) */
  mtlkit_input context_weight;  /* (F, P) */
  mtlkit_input context_bias;    /* (F) */
  mtlkit_input norm_weight;     /* (F) */
  mtlkit_input norm_bias;       /* (F) */
  mtlkit_input norm_mean;       /* (F) */
  mtlkit_input norm_var;        /* (F) */
  mtlkit_input clf_gate_weight; /* (F, F) */
  mtlkit_input clf_gate_bias;   /* (F) */
  mtlkit_input gain_weight;     /* (C, F) */
  mtlkit_input gain_bias;       /* (C) */
  mtlkit_input seg_gate_weight; /* (C, C) */
  mtlkit_input seg_gate_bias;   /* (C) */
  mtlkit_input fc1_weight;      /* (hidden, S) */
  mtlkit_input fc1_bias;        /* (hidden) */
  mtlkit_input fc2_weight;      /* (2, hidden) */
  mtlkit_input fc2_bias;        /* (2) */
  mtlkit_input seg_proj;        /* (Q, C), may be left out */
  mtlkit_input clf_proj;        /* (Q, F), may be left out with seg_proj */
  mtlkit_input normaliser;      /* (2), divides the two variances; may be left out: their means over the batch */
  float tau;                    /* strength of the modulation, e.g. 0.7 */
  float eps;                    /* of the norm of the context, e.g. 1e-3 */
  mtlkit_output seg;            /* (B, C, H, W) */
  mtlkit_output clf;            /* (B, F) */
  mtlkit_output gates;          /* (B, 2), may be left out, like the next three */
  mtlkit_output signals;        /* (B, S) */
  mtlkit_output enhanced;       /* (B, F), f before the gate */
  mtlkit_output mu;             /* (B, C), the factors of the channels before the gate */
} mtlkit_task_interaction_arguments;

MTLKIT_API mtlkit_status mtlkit_task_interaction(const mtlkit_task_interaction_arguments* arguments, mtlkit_pool* pool);

#ifdef __cplusplus
}
#endif

#endif /* MTLKIT_H */
