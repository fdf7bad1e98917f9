/*
 * Numbers as text: exact round trips, refusals, and independence of the program's locale, whose
 * decimal comma must reach neither files nor option texts.
 */
#include <criterion/criterion.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/headroom.h"
#include "metadata.h"
#include "observer.h"
#include "scratch_dir.h"
#include "test_random.h"

Test(metadata, floats_survive_nine_digits)
{
    test_random random = {1};
    for (int i = 0; i < 20000; i++) {
        uint32_t bits = (uint32_t)random_bits(&random);
        float value;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value)) continue;
        char text[HR_NUMBER_BYTES];
        double again;
        cr_assert_eq(hr_number_print((double)value, 9, text), HR_OK);
        cr_assert(hr_number_parse(text, &again), "%s", text);
        cr_assert_eq((float)again, value, "%s", text);
    }
}

Test(metadata, only_numbers_are_numbers)
{
    static const char *const bad[] = {"",      "nan",  "inf", "0x10", "1,5", "1.5x",
                                      "\"1\"", "true", "[1]", "1 2",  "+1",  NULL};
    double value = 7;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_assert(!hr_number_parse(bad[i], &value), "\"%s\"", bad[i] ? bad[i] : "NULL");
    cr_assert_eq(value, 7, "untouched");
    char text[HR_NUMBER_BYTES];
    cr_assert_eq(hr_number_print(100, 10, text), HR_OK);
    cr_assert_str_eq(text, "100");
    cr_assert_eq(hr_number_print(NAN, 10, text), HR_ERROR_OUT_OF_MEMORY);
}

/* A profile of a synthetic recording, written and read back. */
static void write_and_read(const scratch_dir *scratch)
{
    scratch_path recording_path = scratch_file(scratch, "rec.safetensors");
    scratch_path profile_path = scratch_file(scratch, "profile.safetensors");
    hr_synth_options synth;
    hr_synth_options_init(&synth);
    synth.mode = "gaussian";
    synth.num_heads = synth.num_kv_heads = 1;
    synth.tokens = 16;
    cr_assert_eq(hr_synth_write(&synth, recording_path.text), HR_OK, "%s", hr_last_error());
    hr_recording *recording;
    cr_assert_eq(hr_recording_open(recording_path.text, &recording), HR_OK, "%s", hr_last_error());
    hr_recording_info info = hr_recording_get_info(recording);
    cr_assert_eq(info.softmax_scale, 0.125f);
    hr_recording_layer layer;
    cr_assert_eq(hr_recording_get_layer(recording, 0, &layer), HR_OK);

    hr_calibrator_options options = {.observer = "percentile:99.99"};
    cr_assert_eq(hr_recipe_parse("fp8", &options.recipe), HR_OK);
    hr_calibrator *calibrator;
    hr_profile *profile;
    cr_assert_eq(hr_calibrator_create(&options, &calibrator), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_calibrator_set_source(calibrator, &info), HR_OK);
    cr_assert_eq(hr_calibrator_observe(calibrator, 0, &layer.q, &layer.k, &layer.v), HR_OK);
    cr_assert_eq(hr_calibrator_finish(calibrator, NULL, 0, &profile), HR_OK);
    cr_assert_eq(hr_profile_write(profile, profile_path.text), HR_OK, "%s", hr_last_error());
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    hr_recording_close(recording);

    cr_assert_eq(hr_profile_read(profile_path.text, &profile), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_profile_get_info(profile).softmax_scale, 0.125f);
    cr_assert_str_eq(hr_profile_get_info(profile).observer, "percentile:99.99");
    hr_profile_free(profile);
}

Test(metadata, a_decimal_comma_changes_nothing)
{
    static const char *const locales[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "es_ES.UTF-8"};
    const char *chosen = NULL;
    for (size_t i = 0; !chosen && i < sizeof locales / sizeof *locales; i++)
        chosen = setlocale(LC_NUMERIC, locales[i]);
    if (!chosen) cr_skip("no locale with a decimal comma is installed");
    cr_assert_str_eq(localeconv()->decimal_point, ",");
    scratch_dir scratch = scratch_open();
    write_and_read(&scratch);
    scratch_close(&scratch);
    setlocale(LC_NUMERIC, "C");
}
