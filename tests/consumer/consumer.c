/*
 * What a user of the installed library writes: rounds numbers through E4M3 and opens a recording.
 * The argument is a recording; prints how many layers it has.
 */
#include <headroom/headroom.h>
#include <stdio.h>

#if HR_VERSION < 100
#error "headroom 0.1.0 or later is needed"
#endif

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: consumer RECORDING\n");
        return 2;
    }

    const float values[4] = {1.0f, -0.3f, 448.0f, 1e9f};
    const float expected[4] = {1.0f, -0.3125f, 448.0f, 448.0f};
    unsigned char codes[4];
    float back[4];
    if (hr_encode(HR_DTYPE_E4M3, values, 4, 1.0f, 0, codes) != HR_OK ||
        hr_decode(HR_DTYPE_E4M3, codes, 4, 1.0f, 0, back) != HR_OK) {
        fprintf(stderr, "%s\n", hr_last_error());
        return 1;
    }
    for (int i = 0; i < 4; i++) {
        if (back[i] != expected[i]) {
            fprintf(stderr, "%g came back as %g\n", (double)values[i], (double)back[i]);
            return 1;
        }
    }

    hr_recording *recording;
    if (hr_recording_open(argv[1], &recording) != HR_OK) {
        fprintf(stderr, "%s\n", hr_last_error());
        return 1;
    }
    hr_recording_info info = hr_recording_get_info(recording);
    printf("headroom %s: %d layers\n", hr_version(), (int)info.layer_count);
    hr_recording_close(recording);
    return 0;
}
