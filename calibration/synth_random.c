/*
 * Philox, the inverse normal CDF and bit-reproducible elementary functions; see synth_random.h.
 *
 * The inverse CDF is algorithm AS 241 (PPND16): M. J. Wichura, "The percentage points of the normal
 * distribution", Applied Statistics 37(3), 1988; relative accuracy about 1e-16. Its third region,
 * probabilities below exp(-25), cannot be reached with 32-bit words and is left out.
 */
#include "synth_random.h"

#include <float.h>
#include <math.h>

/* Wider intermediate results (x87) would round differently; 16 only speaks of _Float16. */
_Static_assert(FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 16,
               "synthetic data needs binary64 arithmetic without excess precision");

hr_random_words hr_random_philox(hr_random_words counter, uint64_t key)
{
    enum { ROUNDS = 10 };
    uint32_t key0 = (uint32_t)key, key1 = (uint32_t)(key >> 32);
    for (int round = 0; round < ROUNDS; round++) {
        const uint32_t *c = counter.word;
        uint64_t product0 = (uint64_t)0xD2511F53u * c[0], product1 = (uint64_t)0xCD9E8D57u * c[2];
        counter = (hr_random_words){{(uint32_t)(product1 >> 32) ^ c[1] ^ key0, (uint32_t)product1,
                                     (uint32_t)(product0 >> 32) ^ c[3] ^ key1, (uint32_t)product0}};
        key0 += 0x9E3779B9u; /* golden ratio and sqrt(3) - 1, the Weyl sequence of the key */
        key1 += 0xBB67AE85u;
    }
    return counter;
}

/* coefficients[0] + x (coefficients[1] + x (...)), degree 7 */
static double polynomial(const double coefficients[8], double x)
{
    double sum = coefficients[7];
    for (int i = 6; i >= 0; i--)
        sum = sum * x + coefficients[i];
    return sum;
}

double hr_random_gaussian(uint32_t word)
{
    static const double a[8] = {3.3871328727963666080e0,  1.3314166789178437745e+2,
                                1.9715909503065514427e+3, 1.3731693765509461125e+4,
                                4.5921953931549871457e+4, 6.7265770927008700853e+4,
                                3.3430575583588128105e+4, 2.5090809287301226727e+3},
                        b[8] = {1.0,
                                4.2313330701600911252e+1,
                                6.8718700749205790830e+2,
                                5.3941960214247511077e+3,
                                2.1213794301586595867e+4,
                                3.9307895800092710610e+4,
                                2.8729085735721942674e+4,
                                5.2264952788528545610e+3},
                        c[8] = {1.42343711074968357734e0,  4.63033784615654529590e0,
                                5.76949722146069140550e0,  3.64784832476320460504e0,
                                1.27045825245236838258e0,  2.41780725177450611770e-1,
                                2.27238449892691845833e-2, 7.74545014278341407640e-4},
                        d[8] = {1.0,
                                2.05319162663775882187e0,
                                1.67638483018380384940e0,
                                6.89767334985100004550e-1,
                                1.48103976427480074590e-1,
                                1.51986665636164571966e-2,
                                5.47593808499534494600e-4,
                                1.05075007164441684324e-9};
    double p = ((double)word + 0.5) / 4294967296.0, q = p - 0.5;
    if (fabs(q) <= 0.425) {
        double r = 0.180625 - q * q;
        return q * polynomial(a, r) / polynomial(b, r);
    }
    double r = sqrt(-hr_stable_log(q < 0 ? p : 1 - p)) - 1.6;
    double magnitude = polynomial(c, r) / polynomial(d, r);
    return q < 0 ? -magnitude : magnitude;
}

double hr_stable_log(double x)
{
    /* x = 2^exponent m with m in [sqrt(1/2), sqrt(2)]; log m = 2 atanh(s), s = (m-1)/(m+1) */
    enum { LAST_TERM = 23 }; /* |s| <= 0.172, so the next term is below 1e-20 */
    int exponent;
    double m = frexp(x, &exponent);
    if (m < 0.70710678118654752440) {
        m *= 2;
        exponent--;
    }
    double s = (m - 1) / (m + 1), square = s * s, sum = 0;
    for (int n = LAST_TERM; n >= 1; n -= 2)
        sum = sum * square + 1.0 / n;
    return exponent * 0.69314718055994530942 + 2 * s * sum;
}

double hr_stable_exp(double x)
{
    enum { HALVINGS = 4, TERMS = 20 }; /* |x| / 16 <= 1, so the next term is below 1e-19 */
    double part = x / (1 << HALVINGS), sum = 1;
    for (int n = TERMS; n >= 1; n--)
        sum = 1 + sum * part / n;
    for (int i = 0; i < HALVINGS; i++)
        sum *= sum;
    return sum;
}

void hr_stable_sincos(double angle, double *sine, double *cosine)
{
    enum { TERMS = 15 }; /* |r| <= pi, so the next terms are below 1e-16 */
    static const double turn = 6.28318530717958647693;
    double r = angle - turn * floor(angle / turn + 0.5), square = r * r;
    double s = 1, c = 1;
    for (int n = TERMS; n >= 1; n--) {
        s = 1 - s * square / (2 * n * (2 * n + 1));
        c = 1 - c * square / (2 * n * (2 * n - 1));
    }
    *sine = r * s;
    *cosine = c;
}
