/*
 * A choice: what it takes of an audit's figures, writing and reading it with its profiles, running
 * it, and files that are wrong.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/headroom.h"
#include "scratch_dir.h"

enum { LAYERS = 2, HEADS = 4, KV_HEADS = 2, GROUP = HEADS / KV_HEADS, HEAD_DIM = 32, TOKENS = 96 };

typedef struct fixture {
    scratch_dir scratch;
    hr_recording *recording;
    hr_audit *audit;
} fixture;

static fixture open_fixture(void)
{
    fixture f = {.scratch = scratch_open()};
    const scratch_path path = scratch_file(&f.scratch, "rec.safetensors");
    hr_synth_options synth;
    hr_synth_options_init(&synth);
    synth.mode = "mixed";
    synth.num_heads = HEADS;
    synth.num_kv_heads = KV_HEADS;
    synth.head_dim = HEAD_DIM;
    synth.tokens = TOKENS;
    synth.layers = LAYERS;
    cr_assert_eq(hr_synth_write(&synth, path.text), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_recording_open(path.text, &f.recording), HR_OK, "%s", hr_last_error());
    const char *const observers[] = {"absmax", "mse"};
    const hr_audit_options options = {.observers = observers, .observer_count = 2, .repeats = 1};
    cr_assert_eq(hr_audit_run(f.recording, &options, &f.audit), HR_OK, "%s", hr_last_error());
    return f;
}

static void close_fixture(fixture *f)
{
    hr_audit_free(f->audit);
    hr_recording_close(f->recording);
    scratch_close(&f->scratch);
}

static hr_choice *choose(const fixture *f, double budget)
{
    hr_choice *choice;
    cr_assert_eq(hr_choice_from_audit(f->audit, budget, &choice), HR_OK, "%s", hr_last_error());
    return choice;
}

/* The largest e_total of the query heads that read a KV head. */
static double worst(const hr_audit *audit, const char *id, int layer, int kv_head)
{
    for (int32_t c = 0; c < audit->config_count; c++) {
        if (strcmp(audit->configs[c].id, id) != 0) continue;
        double largest = 0;
        for (int h = 0; h < GROUP; h++)
            largest = fmax(
                largest, audit->configs[c].heads[layer * HEADS + kv_head * GROUP + h].total.rel_l2);
        return largest;
    }
    cr_assert_fail("no config %s", id);
    return NAN;
}

Test(choice, takes_the_fewest_bits_that_all_readers_of_a_kv_head_can_live_with)
{
    fixture f = open_fixture();
    const double budget = 0.05;
    hr_choice *choice = choose(&f, budget);
    double bits = 0;
    for (int l = 0; l < LAYERS; l++)
        for (int h = 0; h < KV_HEADS; h++) {
            const hr_choice_config *config = &choice->configs[choice->layers[l].config[h]];
            const double own = worst(f.audit, config->id, l, h);
            const double own_bits = hr_recipe_kv_bits(&config->recipe, HEAD_DIM);
            cr_assert_eq(choice->layers[l].rel_l2[h], own);
            cr_assert(own <= budget);
            bits += own_bits / (LAYERS * KV_HEADS);
            for (int32_t c = 0; c < f.audit->config_count; c++) {
                const hr_audit_config *other = &f.audit->configs[c];
                const double error = worst(f.audit, other->id, l, h);
                cr_assert(!(error <= budget) || other->kv_bits > own_bits ||
                              (other->kv_bits == own_bits && error >= own),
                          "layer %d KV head %d: %s rather than %s", l, h, other->id, config->id);
            }
        }
    cr_assert(fabs(choice->kv_bits - bits) < 1e-9);
    hr_choice_free(choice);

    /* Where nothing is good enough, the best there is. */
    choice = choose(&f, 1e-9);
    cr_assert_eq(choice->config_count, 1);
    cr_assert_str_eq(choice->configs[0].id, "bf16");
    cr_assert_eq(choice->layers[1].rel_l2[1], worst(f.audit, "bf16", 1, 1));
    hr_choice_free(choice);
    cr_assert_eq(hr_choice_from_audit(f.audit, 0, &choice), HR_ERROR_INVALID_ARGUMENT);
    close_fixture(&f);
}

/* Errors of what a choice gives are those the audit measured of each config, head by head. */
static void check_run(const fixture *f, const hr_choice *choice)
{
    hr_recipe recipes[8];
    hr_layer_scales scales[8];
    cr_assert(choice->config_count <= 8);
    hr_choice_recipes(choice, recipes);
    for (int l = 0; l < LAYERS; l++) {
        hr_recording_layer layer;
        cr_assert_eq(hr_recording_get_layer(f->recording, l, &layer), HR_OK);
        const hr_recording_info info = hr_recording_get_info(f->recording);
        hr_attention_problem problem;
        hr_attention_problem_init(&problem, HEADS, KV_HEADS, HEAD_DIM);
        problem.cu_seqlens_q = problem.cu_seqlens_kv = info.cu_seqlens;
        problem.softmax_scale = info.softmax_scale;
        problem.mask.causal = info.causal;
        hr_mixed *mixed;
        cr_assert_eq(hr_choice_scales(choice, layer.layer, scales), HR_OK, "%s", hr_last_error());
        cr_assert_eq(hr_mixed_create(&problem, recipes, choice->config_count,
                                     hr_choice_find_layer(choice, layer.layer)->config, NULL,
                                     &mixed),
                     HR_OK, "%s", hr_last_error());
        cr_assert_eq(hr_mixed_pack(mixed, &layer.q, &layer.k, &layer.v, scales), HR_OK, "%s",
                     hr_last_error());
        static float o[TOKENS * HEADS * HEAD_DIM];
        static double reference[TOKENS * HEADS * HEAD_DIM];
        cr_assert_eq(hr_mixed_start(mixed), HR_OK);
        cr_assert_eq(hr_mixed_fetch(mixed, o, NULL), HR_OK);
        cr_assert_eq(
            hr_reference_attention(&problem, &layer.q, &layer.k, &layer.v, reference, NULL), HR_OK);
        for (int h = 0; h < KV_HEADS; h++) {
            double largest = 0;
            for (int g = h * GROUP; g < (h + 1) * GROUP; g++) {
                hr_error error;
                hr_error_measure(o + g * HEAD_DIM, HEADS * HEAD_DIM, reference + g * HEAD_DIM,
                                 HEADS * HEAD_DIM, TOKENS, HEAD_DIM, &error);
                largest = fmax(largest, error.rel_l2);
            }
            cr_assert(fabs(largest - choice->layers[l].rel_l2[h]) <= 1e-6 * largest,
                      "layer %d KV head %d: %g, the choice says %g", l, h, largest,
                      choice->layers[l].rel_l2[h]);
        }
        hr_mixed_free(mixed);
    }
}

Test(choice, gives_the_errors_that_the_audit_measured_also_from_its_file)
{
    fixture f = open_fixture();
    const scratch_path path = scratch_file(&f.scratch, "choice.json");
    bool saw_profile = false;
    const double budgets[] = {0.02, 0.05, 0.08};
    for (int b = 0; b < 3; b++) {
        hr_choice *made = choose(&f, budgets[b]), *read;
        check_run(&f, made);
        cr_assert_eq(hr_choice_write(made, path.text), HR_OK, "%s", hr_last_error());
        cr_assert_eq(hr_choice_read(path.text, &read), HR_OK, "%s", hr_last_error());
        cr_assert_eq(hr_choice_check(read, f.recording, NULL, 0), HR_OK, "%s", hr_last_error());
        cr_assert_str_eq(read->model, made->model);
        cr_assert_eq(read->budget, made->budget);
        cr_assert_eq(read->config_count, made->config_count);
        for (int32_t c = 0; c < read->config_count; c++) {
            cr_assert_str_eq(read->configs[c].id, made->configs[c].id);
            cr_assert_str_eq(read->configs[c].recipe.name, made->configs[c].recipe.name);
            cr_assert_eq(!read->configs[c].profile, !made->configs[c].profile);
            saw_profile = saw_profile || read->configs[c].profile;
        }
        for (int l = 0; l < LAYERS; l++)
            cr_assert_arr_eq(read->layers[l].config, made->layers[l].config,
                             KV_HEADS * sizeof(int32_t));
        check_run(&f, read);
        hr_choice_free(read);
        hr_choice_free(made);
    }
    cr_assert(saw_profile, "no budget chose a recipe with static scales");
    close_fixture(&f);
}

static void refuse(const scratch_dir *scratch, const char *text, hr_status expected,
                   const char *says)
{
    const scratch_path path = scratch_file(scratch, "wrong.json");
    FILE *file = fopen(path.text, "w");
    cr_assert_not_null(file);
    fputs(text, file);
    fclose(file);
    hr_choice *choice;
    cr_assert_eq(hr_choice_read(path.text, &choice), expected, "%s: %s", text, hr_last_error());
    cr_assert_null(choice);
    cr_assert(strstr(hr_last_error(), says) && strstr(hr_last_error(), "wrong.json"),
              "%s\nmessage: %s\nwanted: %s", text, hr_last_error(), says);
}

#define CHOICE(configs, layers)                                                                    \
    "{\"schema\":\"headroom-choice\",\"schema_version\":1,\"configs\":[" configs                   \
    "],\"layers\":[" layers "]}"
#define INT8 "{\"id\":\"int8\",\"recipe\":\"int8\"}"
#define LAYER(number, kv, configs)                                                                 \
    "{\"layer\":" number ",\"num_heads\":2,\"num_kv_heads\":" kv ",\"head_dim\":32,"               \
    "\"configs\":" configs "}"
#define GOOD LAYER("3", "2", "[\"int8\",\"int8\"]")

Test(choice, wrong_files_are_refused)
{
    const scratch_dir scratch = scratch_open();
    const struct {
        const char *text, *says;
    } cases[] = {
        {"", "is not a choice in JSON"},
        {"[1", "is not a choice in JSON"},
        {"{\"a\":1,\"a\":2}", "duplicate"},
        {"[]", "schema is not"},
        {"{\"schema\":\"headroom-report\"}", "schema is not"},
        {"{\"schema\":\"headroom-choice\",\"schema_version\":2}", "schema_version is not 1"},
        {"{\"schema\":\"headroom-choice\",\"schema_version\":1}", "configs"},
        {CHOICE(INT8, ""), "must be lists that are not empty"},
        {CHOICE("", GOOD), "must be lists that are not empty"},
        {CHOICE("{\"id\":\"a\"}", GOOD), "configs[0]: "},
        {CHOICE("{\"id\":\"a\",\"recipe\":\"int8\",\"bits\":3}", GOOD), "configs[0]: "},
        {CHOICE("{\"id\":\"a\",\"recipe\":\"fp8\"}", GOOD), "configs[0]: recipe fp8 has static"},
        {CHOICE("{\"id\":\"a\",\"recipe\":\"fp8\",\"profile\":\"../x\"}", GOOD),
         "configs[0]: profile is \"../x\"; the name of a file beside"},
        {CHOICE("{\"id\":\"a\",\"recipe\":\"fp8\",\"profile\":3}", GOOD), "profile is no text"},
        {CHOICE(INT8 "," INT8, GOOD), "configs[0] and [1] are both \"int8\""},
        {CHOICE(INT8, LAYER("3", "2", "[\"int8\",\"int4\"]")),
         "layer 3: KV head 1 has config \"int4\", which is none of configs"},
        {CHOICE(INT8, LAYER("3", "2", "[\"int8\",7]")), "KV head 1 has config \"\""},
        {CHOICE(INT8, LAYER("3", "2", "[\"int8\"]")), "configs is not a list of 2"},
        {CHOICE(INT8, LAYER("3", "2", "{}")), "configs is not a list of 2"},
        {CHOICE(INT8, LAYER("3", "0", "[]")), "layer 3: 2 heads and 0 KV heads"},
        {CHOICE(INT8, LAYER("3", "4", "[]")), "layer 3: 2 heads and 4 KV heads"},
        {CHOICE(INT8, LAYER("-1", "2", "[]")), "layer -1 after -1"},
        {CHOICE(INT8, GOOD "," GOOD), "layers[1] is layer 3 after 3"},
        {CHOICE(INT8, "[]"), "layers[0]: "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refuse(&scratch, cases[i].text, HR_ERROR_FORMAT, cases[i].says);
    refuse(&scratch, CHOICE("{\"id\":\"a\",\"recipe\":\"int5\"}", GOOD), HR_ERROR_NOT_FOUND,
           "configs[0]: ");
    refuse(&scratch, CHOICE("{\"id\":\"a\",\"recipe\":\"fp8\",\"profile\":\"none\"}", GOOD),
           HR_ERROR_IO, "configs[0]: ");
    hr_choice *choice;
    cr_assert_eq(hr_choice_read(scratch.path, &choice), HR_ERROR_IO);
    cr_assert_eq(hr_choice_read("/tmp/none/choice.json", &choice), HR_ERROR_IO);
    scratch_close(&scratch);
}

Test(choice, belongs_to_a_model_and_its_shapes)
{
    fixture f = open_fixture();
    hr_choice *choice = choose(&f, 0.05);
    const int32_t second = 1;
    cr_assert_eq(hr_choice_check(choice, f.recording, NULL, 0), HR_OK);
    choice->layers[0].head_dim = 64;
    cr_assert_eq(hr_choice_check(choice, f.recording, NULL, 0), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "layer 0: the choice was made for 4 heads"));
    cr_assert_eq(hr_choice_check(choice, f.recording, &second, 1), HR_OK);
    choice->layers[1].layer = 9;
    cr_assert_eq(hr_choice_check(choice, f.recording, &second, 1), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "the choice has no layer 1"));
    free(choice->model);
    choice->model = strdup("another");
    cr_assert_eq(hr_choice_check(choice, f.recording, &second, 1), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "model \"another\""));
    hr_choice_free(choice);
    hr_choice_free(NULL);
    close_fixture(&f);
}
