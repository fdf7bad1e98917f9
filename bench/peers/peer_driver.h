/*
 * One driver program for each peer library: it loads one attention problem, and then, at the
 * runner's word on standard input, runs it once and prints the seconds. run.py starts the drivers
 * of all peers and asks them in turn, so that every ratio is of neighbours in time.
 *
 *     PEER_DRIVER --variant V --head-dim D --seqlen-q N --seqlen-kv N --heads H --kv-heads H
 *                 --mask full|causal --threads T --cold MIB --inputs PREFIX
 *
 * PREFIX.q, PREFIX.k, PREFIX.v: float32, [seqlen, heads, head_dim]. Once loaded, quantized and run
 * once, the driver prints one line of JSON: {"version", "unit", "kv_bytes", "copies"}. Then:
 *
 *     run            prints the seconds of one run (of a peak: its GOP/s or GB/s)
 *     output PATH    writes O, float32 [seqlen_q, heads, head_dim], prints "ok"
 *
 * peer_driver.c holds main; a peer implements the five functions at the end.
 */
#ifndef PEER_DRIVER_H
#define PEER_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct peer_case {
    const char *variant;
    int head_dim, seqlen_q, seqlen_kv, num_heads, num_kv_heads, threads;
    bool causal;            /* bottom-right aligned; only with seqlen_q == seqlen_kv or 1 */
    const float *q, *k, *v; /* [seqlen, heads, head_dim]; gone once peer_open has returned */
} peer_case;

typedef struct peer peer; /* one problem, ready to run */

/* Prints what is wrong to standard error and exits with status 1. */
_Noreturn void peer_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Memory for K and V: aligned to 2 MiB and advised to use huge pages. Exits when there is none. */
void *peer_memory(size_t bytes);

/* x [seqlen, heads, head_dim] to contiguous heads [heads, seqlen, head_dim]; caller frees. */
float *peer_by_head(const float *x, int seqlen, int heads, int head_dim);

/* Implemented by a peer. */
const char *peer_version(void);
peer *peer_open(const peer_case *problem); /* one copy of K and V */
size_t peer_kv_bytes(const peer *p);       /* what K and V take in the peer's format */
void peer_add_copy(peer *p);               /* one more copy of K and V elsewhere in memory */
double peer_run(peer *p, int copy);        /* attention over that copy; 0, or a peak's figure */
const char *peer_unit(const peer *p);      /* "s", or what peer_run's figure is */
const float *peer_output(const peer *p);   /* [seqlen_q, heads, head_dim]; NULL for a peak */

#endif
