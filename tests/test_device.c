/*
 * Devices without one: every way in which a machine can lack a usable GPU has its own message,
 * every CUDA call's failure is reported and leaks nothing, and memory on the wrong device is
 * refused. The machines are pretended (fake_cuda.h); the last test asks the real one.
 */
#include <criterion/criterion.h>
#include <stdio.h>

#include "fake_cuda.h"
#include "headroom/headroom.h"
#include "isa.h"

static void pretend(void)
{
    fake_start();
    unsetenv("HEADROOM_ISA");
}

static void expect_error(hr_status status, hr_status expected, const char *part)
{
    cr_assert_eq(status, expected, "%s: %s", hr_status_string(status), hr_last_error());
    cr_assert(strstr(hr_last_error(), part), "no \"%s\" in: %s", part, hr_last_error());
}

Test(device, names_round_trip)
{
    hr_device device;
    cr_assert_eq(hr_device_parse("cuda", &device), HR_OK);
    cr_assert_eq(device, HR_DEVICE_CUDA);
    cr_assert_eq(hr_device_parse("cpu", &device), HR_OK);
    cr_assert_eq(device, HR_DEVICE_CPU);
    expect_error(hr_device_parse("gpu", &device), HR_ERROR_NOT_FOUND, "cpu, cuda");
    expect_error(hr_device_check((hr_device)7), HR_ERROR_INVALID_ARGUMENT, "7");
    cr_assert_str_eq(hr_device_name((hr_device)7), "unknown");
}

Test(device, a_hopper_gpu_is_found_and_described, .init = pretend)
{
    char text[128];
    cr_assert_eq(hr_device_check(HR_DEVICE_CUDA), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_device_describe(HR_DEVICE_CUDA, text, sizeof text), HR_OK);
    cr_assert_str_eq(text, "NVIDIA Pretend (compute capability 9.0, 132 multiprocessors)");
    cr_assert(hr_isa_mask() >> HR_ISA_SM90 & 1);
    setenv("HEADROOM_ISA", "avx2", 1);
    cr_assert_eq(hr_isa_mask() >> HR_ISA_SM90 & 1, 0);
    uint32_t mask;
    expect_error(hr_isa_usable(HR_DEVICE_CUDA, &mask), HR_ERROR_DEVICE, "leaves out sm90");
    setenv("HEADROOM_ISA", "sm90", 1);
    cr_assert_eq(hr_isa_usable(HR_DEVICE_CUDA, &mask), HR_OK);
    cr_assert_eq(mask, 1u << HR_ISA_SM90);
    cr_assert_eq(hr_isa_usable(HR_DEVICE_CPU, &mask), HR_OK);
    cr_assert_eq(mask, 1u << HR_ISA_PORTABLE);
}

static void expect_unusable(const char *part)
{
    void *memory;
    expect_error(hr_device_check(HR_DEVICE_CUDA), HR_ERROR_DEVICE, part);
    expect_error(hr_device_alloc(HR_DEVICE_CUDA, 1, 1, &memory), HR_ERROR_DEVICE, part);
    cr_assert_eq(hr_isa_mask() >> HR_ISA_SM90 & 1, 0);
}

Test(device, what_a_machine_lacks_is_named, .init = pretend)
{
    fake.driver = 0;
    expect_unusable("no CUDA driver on this machine");
    fake.driver = 12080;
    expect_unusable("supports CUDA 12.8, this build needs 13.0");
    fake.driver = 13020;
    cr_assert_eq(hr_device_check(HR_DEVICE_CUDA), HR_OK);
    fake.count_error = HR_CUDA_DRIVER_TOO_OLD;
    expect_unusable("too old for this build");
    fake.count_error = HR_CUDA_NO_DEVICE;
    expect_unusable("no GPU that this process may use");
    fake.count_error = 0;
    fake.count = 0;
    expect_unusable("no GPU that this process may use");
    fake.count = 1;
    fake.capability = 80;
    expect_unusable("GPU 0, NVIDIA Pretend, has compute capability 8.0");
    fake.capability = 100;
    expect_unusable("has compute capability 10.0; the CUDA kernels need exactly 9.0");
    fake.capability = 90;
    fake.device_error = 46;
    expect_unusable("describe the current GPU: a pretended error (error 46)");
}

Test(device, memory_comes_zeroed_and_goes_both_ways, .init = pretend)
{
    void *there;
    unsigned char here[300], back[300];
    for (int i = 0; i < 300; i++)
        here[i] = (unsigned char)(i + 1);
    cr_assert_eq(hr_device_alloc(HR_DEVICE_CUDA, 3, 100, &there), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_device_copy(HR_DEVICE_CPU, back, HR_DEVICE_CUDA, there, 300, NULL), HR_OK);
    for (int i = 0; i < 300; i++)
        cr_assert_eq(back[i], 0);
    cr_assert_eq(hr_device_copy(HR_DEVICE_CUDA, there, HR_DEVICE_CPU, here, 300, NULL), HR_OK);
    cr_assert_eq(hr_device_copy(HR_DEVICE_CPU, back, HR_DEVICE_CUDA, there, 300, NULL), HR_OK);
    cr_assert_eq(memcmp(here, back, 300), 0);
    hr_device_free(HR_DEVICE_CUDA, there);
    hr_device_free(HR_DEVICE_CUDA, NULL);
    cr_assert_eq(fake.live, 0);
    cr_assert_eq(hr_device_synchronize(HR_DEVICE_CPU, NULL), HR_OK);
    expect_error(hr_device_copy(HR_DEVICE_CUDA, NULL, HR_DEVICE_CPU, here, 1, NULL),
                 HR_ERROR_INVALID_ARGUMENT, "must not be NULL");
}

Test(device, failures_are_reported_and_leak_nothing, .init = pretend)
{
    void *memory;
    fake.allocate_error = HR_CUDA_OUT_OF_MEMORY;
    fake.allocations_left = 0;
    expect_error(hr_device_alloc(HR_DEVICE_CUDA, 10, 100, &memory), HR_ERROR_OUT_OF_MEMORY,
                 "no memory for 1000 bytes: 1234 of its 5678 bytes are free");
    fake.memory_error = 1;
    fake.allocations_left = 0;
    expect_error(hr_device_alloc(HR_DEVICE_CUDA, 10, 100, &memory), HR_ERROR_OUT_OF_MEMORY,
                 "no memory for 1000 bytes");
    expect_error(hr_device_alloc(HR_DEVICE_CUDA, SIZE_MAX, 2, &memory), HR_ERROR_OUT_OF_MEMORY,
                 "cannot allocate");
    fake.allocate_error = 0;
    fake.clear_error = 719;
    expect_error(hr_device_alloc(HR_DEVICE_CUDA, 10, 100, &memory), HR_ERROR_DEVICE,
                 "unspecified launch failure (error 719)");
    cr_assert_null(memory);
    cr_assert_eq(fake.live, 0);
    fake.clear_error = 0;
    fake.synchronize_error = 719;
    expect_error(hr_device_synchronize(HR_DEVICE_CUDA, NULL), HR_ERROR_DEVICE,
                 "finish what was queued on the GPU: unspecified launch failure");
    char byte = 0;
    fake.synchronize_error = 0;
    fake.copy_error = 1;
    expect_error(hr_device_copy(HR_DEVICE_CUDA, &byte, HR_DEVICE_CPU, &byte, 1, NULL),
                 HR_ERROR_DEVICE, "queue a copy");
}

static void pack_some(hr_packed_layer *layer)
{
    static float x[16 * 2 * 32];
    for (int i = 0; i < 16 * 2 * 32; i++)
        x[i] = (float)((i * 37) % 101 - 50);
    const int64_t shape[3] = {16, 2, 32};
    const int32_t cu_seqlens[3] = {0, 5, 16};
    hr_tensor view = hr_tensor_view(HR_DTYPE_F32, 3, shape, x);
    hr_recipe recipe;
    cr_assert_eq(hr_recipe_parse("int8", &recipe), HR_OK);
    const hr_layer_layouts rows = {HR_LAYOUT_ROWS, HR_LAYOUT_ROWS, HR_LAYOUT_ROWS};
    cr_assert_eq(
        hr_pack_layer(&recipe, &rows, &view, &view, &view, 2, cu_seqlens, cu_seqlens, NULL, layer),
        HR_OK, "%s", hr_last_error());
}

Test(device, packed_operands_move_whole, .init = pretend)
{
    hr_packed_layer here, there, back;
    pack_some(&here);
    cr_assert_eq(hr_packed_layer_copy(&here, HR_DEVICE_CUDA, &there), HR_OK, "%s", hr_last_error());
    cr_assert_eq(there.q.device, HR_DEVICE_CUDA);
    cr_assert_neq(there.q.codes, here.q.codes);
    cr_assert_eq(hr_packed_layer_copy(&there, HR_DEVICE_CPU, &back), HR_OK);
    const hr_packed *a = &here.q, *b = &back.q;
    cr_assert_eq(b->device, HR_DEVICE_CPU);
    cr_assert_eq(memcmp(a->codes, b->codes, (size_t)a->num_heads * a->head_bytes), 0);
    cr_assert_eq(memcmp(a->scale, b->scale, (size_t)a->scale_count * sizeof(float)), 0);
    cr_assert_eq(memcmp(a->lse_bias, b->lse_bias, 32 * sizeof(float)), 0);
    cr_assert_eq(memcmp(here.k.mean, back.k.mean, 64 * sizeof(float)), 0);
    cr_assert_eq(memcmp(a->slot_offset, b->slot_offset, 3 * sizeof(int64_t)), 0);
    hr_packed_layer_free(&there);
    hr_packed_layer_free(&back);
    cr_assert_eq(fake.live, 0);

    /* Running out of memory at any allocation of the copy frees what was made before it. */
    fake.allocate_error = HR_CUDA_OUT_OF_MEMORY;
    int failures = 0;
    for (int left = 0;; left++) {
        fake.allocations_left = left;
        if (hr_packed_layer_copy(&here, HR_DEVICE_CUDA, &there) == HR_OK) break;
        cr_assert_eq(fake.live, 0);
        cr_assert_null(there.q.codes);
        failures++;
    }
    cr_assert_geq(failures, 6);
    hr_packed_layer_free(&there);
    hr_packed_layer_free(&here);
}

Test(device, calls_that_read_host_memory_refuse_other, .init = pretend)
{
    hr_packed_layer here, there;
    pack_some(&here);
    cr_assert_eq(hr_packed_layer_copy(&here, HR_DEVICE_CUDA, &there), HR_OK);
    float out[16 * 2 * 32];
    hr_packed other;
    expect_error(hr_unpack(&there.q, out), HR_ERROR_MISMATCH, "is in cuda memory");
    expect_error(hr_packed_relayout(&there.k, HR_LAYOUT_ROWS, &other), HR_ERROR_MISMATCH,
                 "must be in cpu memory");
    const hr_packed_file_info info = {.model = "m", .softmax_scale = 1};
    const int32_t layer = 0;
    expect_error(hr_packed_write("/tmp/never-written", &info, &layer, &there, 1), HR_ERROR_MISMATCH,
                 "is in cuda memory");
    const int64_t shape[3] = {16, 2, 32};
    hr_tensor view = hr_tensor_view(HR_DTYPE_F32, 3, shape, out);
    view.device = HR_DEVICE_CUDA;
    const int32_t cu_seqlens[2] = {0, 16};
    hr_pack_options options = {.batch = 1, .cu_seqlens = cu_seqlens};
    hr_operand_recipe bf16 = {.dtype = HR_DTYPE_BF16};
    expect_error(hr_pack(HR_OPERAND_Q, &bf16, &view, &options, &other), HR_ERROR_MISMATCH,
                 "is in cuda memory");
    hr_safetensors_writer *writer;
    cr_assert_eq(hr_safetensors_writer_create(&writer), HR_OK);
    expect_error(hr_safetensors_add(writer, "x", &view), HR_ERROR_MISMATCH, "is in cuda memory");
    hr_safetensors_writer_free(writer);
    hr_packed_layer_free(&there);
    hr_packed_layer_free(&here);
    cr_assert_eq(fake.live, 0);
}

/* On a machine with a Hopper GPU this finds it; on any other there is a reason, and no crash. */
Test(device, the_real_machine_answers)
{
    hr_cuda_replace(NULL);
    char text[256];
    if (hr_device_check(HR_DEVICE_CUDA) == HR_OK) {
        cr_assert_eq(hr_device_describe(HR_DEVICE_CUDA, text, sizeof text), HR_OK);
        printf("%s\n", text);
    } else {
        cr_assert(strlen(hr_last_error()) > 20);
        printf("no device cuda here: %s\n", hr_last_error());
        cr_assert_eq(hr_isa_mask() >> HR_ISA_SM90 & 1, 0);
        void *memory;
        cr_assert_eq(hr_device_alloc(HR_DEVICE_CUDA, 1, 1, &memory), HR_ERROR_DEVICE);
    }
}
