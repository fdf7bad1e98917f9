/*
 * Where the `int8` recipe's error comes from, in FP64: everything but the stated roundings is
 * exact, so no kernel can do better. For each kind of data, relative L2 error of O with
 *
 *     unrounded   O = sum P v / sum e              rounded   O = sum P v / sum (P / v_scale)
 *     exact P     P not rounded: what quantizing Q, K and V costs
 *
 * where e = 255 * 2^(x - max x of the tile), P = round(e). Quoted in docs/int8-softmax.md. Takes no
 * arguments; the data is seeded.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { KEYS = 4096, QUERIES = 1024, TILE = 256, MAX_HEAD_DIM = 128 };

/* One kind of data: N(0,1), changed as the fields say. */
typedef struct data_kind {
    const char *name;
    double q_factor;     /* sharpens or flattens the softmax */
    double v_mean;       /* added to every V */
    double scale_spread; /* each token of V times exp(spread * N(0,1)) */
} data_kind;

static const data_kind kinds[] = {
    {"gaussian", 1, 0, 0},      {"gaussian, q x 4", 4, 0, 0},   {"gaussian, q / 10", 0.1, 0, 0},
    {"V with mean 1", 1, 1, 0}, {"V scales e^N(0,1)", 1, 0, 1},
};

typedef struct operand {
    double x[KEYS][MAX_HEAD_DIM]; /* original */
    double code[KEYS][MAX_HEAD_DIM];
    double scale[KEYS];
} operand;

static operand q, k, v;

static double gaussian(void)
{
    return sqrt(-2 * log(1 - drand48())) * cos(6.283185307179586 * drand48());
}

static void fill(operand *x, int tokens, int head_dim, double factor, double mean, double spread)
{
    for (int i = 0; i < tokens; i++) {
        double token_factor = factor * exp(spread * gaussian()), largest = 0;
        for (int c = 0; c < head_dim; c++) {
            x->x[i][c] = token_factor * (gaussian() + mean);
            largest = fmax(largest, fabs(x->x[i][c]));
        }
        x->scale[i] = largest / 127;
        for (int c = 0; c < head_dim; c++)
            x->code[i][c] = rint(x->x[i][c] / x->scale[i]);
    }
}

static double dot(const double *a, const double *b, int count)
{
    double sum = 0;
    for (int i = 0; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

static void exact_row(int i, int head_dim, double *o)
{
    double sum = 0;
    for (int c = 0; c < head_dim; c++)
        o[c] = 0;
    for (int j = 0; j < KEYS; j++) {
        double weight = exp(dot(q.x[i], k.x[j], head_dim) / sqrt(head_dim));
        sum += weight;
        for (int c = 0; c < head_dim; c++)
            o[c] += weight * v.x[j][c];
    }
    for (int c = 0; c < head_dim; c++)
        o[c] /= sum;
}

enum { UNROUNDED, ROUNDED, EXACT_P, VARIANTS };

static void quantized_row(int i, int head_dim, double o[VARIANTS][MAX_HEAD_DIM])
{
    double rounded_o[MAX_HEAD_DIM] = {0}, exact_o[MAX_HEAD_DIM] = {0};
    double sum = 0, rounded_sum = 0, x[TILE];
    for (int first = 0; first < KEYS; first += TILE) {
        double largest = -INFINITY;
        for (int j = 0; j < TILE; j++) {
            int key = first + j;
            x[j] =
                dot(q.code[i], k.code[key], head_dim) * q.scale[i] * k.scale[key] / sqrt(head_dim) +
                log(v.scale[key]);
            largest = fmax(largest, x[j]);
        }
        for (int j = 0; j < TILE; j++) {
            const double *code = v.code[first + j];
            double e = 255 * exp(x[j] - largest), p = rint(e), unit = exp(largest);
            sum += unit * e / v.scale[first + j];
            rounded_sum += unit * p / v.scale[first + j];
            for (int c = 0; c < head_dim; c++) {
                rounded_o[c] += unit * p * code[c];
                exact_o[c] += unit * e * code[c];
            }
        }
    }
    for (int c = 0; c < head_dim; c++) {
        o[UNROUNDED][c] = rounded_o[c] / sum;
        o[ROUNDED][c] = rounded_o[c] / rounded_sum;
        o[EXACT_P][c] = exact_o[c] / sum;
    }
}

int main(void)
{
    printf("%-20s %8s %10s %10s %10s\n", "data", "head_dim", "unrounded", "rounded", "exact P");
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++)
        for (int head_dim = 64; head_dim <= MAX_HEAD_DIM; head_dim *= 2) {
            srand48(1);
            fill(&q, QUERIES, head_dim, kinds[kind].q_factor, 0, 0);
            fill(&k, KEYS, head_dim, 1, 0, 0);
            fill(&v, KEYS, head_dim, 1, kinds[kind].v_mean, kinds[kind].scale_spread);
            double error[VARIANTS] = {0}, norm = 0;
#pragma omp parallel for reduction(+ : error[:VARIANTS], norm)
            for (int i = 0; i < QUERIES; i++) {
                double exact[MAX_HEAD_DIM], o[VARIANTS][MAX_HEAD_DIM];
                exact_row(i, head_dim, exact);
                quantized_row(i, head_dim, o);
                for (int c = 0; c < head_dim; c++) {
                    norm += exact[c] * exact[c];
                    for (int variant = 0; variant < VARIANTS; variant++) {
                        double difference = o[variant][c] - exact[c];
                        error[variant] += difference * difference;
                    }
                }
            }
            printf("%-20s %8d %10.5f %10.5f %10.5f\n", kinds[kind].name, head_dim,
                   sqrt(error[UNROUNDED] / norm), sqrt(error[ROUNDED] / norm),
                   sqrt(error[EXACT_P] / norm));
        }
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
