/*
 * libFuzzer target: any bytes, as a file, must be refused or read without a bad access. Every byte
 * of every tensor of an accepted file is touched, and the file is tried as a recording as well.
 *
 *     cmake -B build/fuzz -DCMAKE_C_COMPILER=clang -DHEADROOM_BUILD_FUZZERS=ON \
 *           -DHEADROOM_SANITIZE=address,undefined
 *     build/fuzz/tests/fuzz_safetensors -max_len=4096 CORPUS tests/fuzz_seeds
 *
 * libFuzzer seldom finds a JSON header's length by itself, so when the first byte is odd the length
 * is put right: bytes 1 and 2 then say how many of the rest are data.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "headroom/recording.h"
#include "headroom/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void write_all(int descriptor, const void *bytes, size_t size)
{
    if (write(descriptor, bytes, size) != (ssize_t)size) abort();
}

static unsigned touch(const hr_safetensors *file)
{
    unsigned sum = 0;
    for (int64_t i = 0; i < hr_safetensors_count(file); i++) {
        hr_tensor tensor = hr_safetensors_tensor(file, i), found;
        int64_t count = hr_tensor_size(&tensor) * hr_dtype_bits(tensor.dtype) / 8;
        for (int64_t j = 0; j < count; j++)
            sum += ((const unsigned char *)tensor.data)[j];
        const char *name = hr_safetensors_name(file, i);
        if (hr_safetensors_find(file, name, &found) != HR_OK) abort();
        if (found.data != tensor.data) abort();
    }
    for (int64_t i = 0; hr_safetensors_metadata_key(file, i); i++)
        if (!hr_safetensors_metadata(file, hr_safetensors_metadata_key(file, i))) abort();
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
    if (descriptor < 0) abort();
    if (size >= 3 && bytes[0] % 2 == 1) {
        size_t rest = size - 3, data = (bytes[1] + 256u * bytes[2]) % (rest + 1);
        uint64_t length = rest - data;
        write_all(descriptor, &length, sizeof length);
        write_all(descriptor, bytes + 3, rest);
    } else if (size > 0) {
        write_all(descriptor, bytes, size);
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    hr_safetensors *file;
    if (hr_safetensors_open(path, &file) == HR_OK) {
        char hash[33];
        hr_safetensors_hash(file, hash);
        volatile unsigned sum = touch(file);
        (void)sum;
        hr_safetensors_close(file);
    } else if (!*hr_last_error() || strchr(hr_last_error(), '\n')) {
        abort(); /* an error is one line */
    }
    hr_recording *recording;
    if (hr_recording_open(path, &recording) == HR_OK) hr_recording_close(recording);
    close(descriptor);
    return 0;
}
