/*
 * headroom audit REC -o DIR: accuracy against speed of recipes on a recording. Prints a table and
 * the answer per head; writes DIR/report.json, DIR/report.html and, for headroom run,
 * DIR/choice.json with the profiles that it names.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "layer_input.h"
#include "mask_option.h"
#include "report_page.h"

enum { PATH_BYTES = 4096, LIST_MAX = 64, KEY_BUDGET = 256, KEY_REPEATS, KEY_DEVICE };

typedef struct audit_arguments {
    cli_common common;
    cli_mask mask;
    cli_files files; /* recipe is the list */
    char *observers;
    double budget;
    long repeats;
    hr_device device;
} audit_arguments;

static const struct argp_option options[] = {
    {"output", 'o', "DIR", 0,
     "Folder for report.json, report.html and choice.json (required; made if missing)", 0},
    {"profile", 'p', "PROFILE", 0,
     "Profile with static scales (default: calibrate on the recording itself)", 0},
    {"recipe", 'r', "LIST", 0,
     "Recipes separated by spaces or semicolons, such as 'int8; int4:kv.granularity=group32'; all "
     "stands for every preset (default)",
     0},
    {"observer", 'b', "LIST", 0,
     "Observers for static scales, separated by commas (default absmax)", 0},
    {"budget", KEY_BUDGET, "X", 0,
     "Largest relative L2 error of the output a head may have (default 0.05)", 0},
    {"repeats", KEY_REPEATS, "N", 0, "Timed runs of each recipe (default 7)", 0},
    CLI_DEVICE_OPTION(KEY_DEVICE),
    {0},
};

static error_t parse(int key, char *text, struct argp_state *state)
{
    audit_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[1] = &arguments->mask;
        return cli_child_input(state, &arguments->common);
    case 'b':
        arguments->observers = text;
        return 0;
    case KEY_BUDGET:
        arguments->budget = cli_relative_error("--budget", text);
        return 0;
    case KEY_REPEATS:
        arguments->repeats = cli_number("--repeats", text, 1, 10000);
        return 0;
    case KEY_DEVICE:
        arguments->device = cli_parse_device(text);
        return 0;
    default:
        return cli_parse_files(key, text, state, &arguments->files);
    }
}

static int parse_observers(char *text, const char **observers, int32_t *count)
{
    *count = 0;
    char *rest = NULL;
    for (char *word = text ? strtok_r(text, ", ", &rest) : NULL; word;
         word = strtok_r(NULL, ", ", &rest)) {
        if (*count == LIST_MAX) return cli_usage("--observer lists more than %d", LIST_MAX);
        /* The library would say the same, but after the recording was opened. */
        hr_calibrator_options probe = {.recipe = *hr_recipe_preset(0), .observer = word};
        hr_calibrator *calibrator;
        if (hr_calibrator_create(&probe, &calibrator) != HR_OK)
            return cli_usage("--observer: %s", hr_last_error());
        hr_calibrator_free(calibrator);
        observers[(*count)++] = word;
    }
    return !text || *count > 0 ? CLI_OK : cli_usage("--observer is empty; give absmax, ...");
}

static int show_progress(void *context, double fraction, const char *what)
{
    (void)context;
    cli_progress(fraction, what);
    return 0;
}

/* The head with the largest e_total; one that is not finite is worse than any number. */
static void worst_head(const hr_audit *audit, const hr_audit_config *config, int *layer, int *head,
                       double *rel_l2)
{
    double worst = -1;
    for (int32_t l = 0; l < audit->layer_count; l++) {
        for (int32_t h = audit->head_offset[l]; h < audit->head_offset[l + 1]; h++) {
            double error = config->heads[h].total.rel_l2;
            if (error <= worst || isnan(worst)) continue;
            worst = error;
            *layer = audit->layers[l].layer;
            *head = h - audit->head_offset[l];
        }
    }
    *rel_l2 = worst;
}

static int widest_id(const hr_audit *audit)
{
    int widest = (int)strlen("recipe/observer");
    for (int32_t c = 0; c < audit->config_count; c++) {
        int width = (int)strlen(audit->configs[c].id);
        if (width > widest) widest = width;
    }
    for (int32_t i = 0; i < audit->baseline_count; i++) {
        int width = (int)strlen(audit->baselines[i].id);
        if (width > widest) widest = width;
    }
    return widest;
}

static void print_baselines(const hr_audit *audit, int width)
{
    for (int32_t i = 0; i < audit->baseline_count; i++) {
        const hr_audit_baseline *baseline = &audit->baselines[i];
        if (i == 0) printf("Baselines, which are not recipes:\n");
        if (*baseline->skipped) {
            printf("%-*s not run: %s\n", width, baseline->id, baseline->skipped);
            continue;
        }
        printf("%-*s %-10s %5s %9.3f %8.1f %6.2f  %8s %8s %8.2e %9.6f\n", width, baseline->id,
               "cuda", "", baseline->timing.median_ms, baseline->timing.gops,
               baseline->timing.x_baseline, "", "", baseline->total.rel_l2, baseline->total.cosine);
    }
}

/* A median far above the fastest pass means that something else had the processors. */
static void print_unsteady(const hr_audit *audit)
{
    const double usual = 1.5;
    double largest = 0;
    for (int32_t c = 0; c < audit->config_count; c++)
        largest =
            fmax(largest, audit->configs[c].timing.median_ms / audit->configs[c].timing.min_ms);
    if (largest > usual)
        printf("Speeds are doubtful: a median is %.1f times the fastest pass. Is the machine busy? "
               "Try --threads 1 or more --repeats.\n",
               largest);
}

static void print_table(const hr_audit *audit)
{
    int width = widest_id(audit);
    printf("%-*s %-10s %5s %9s %8s %6s  %8s %8s %8s %9s  %s\n", width, "recipe/observer", "isa",
           "bits", "ms", "GOP/s", "x bf16", "e_quant", "e_kernel", "e_total", "cosine",
           "worst head");
    for (int32_t c = 0; c < audit->config_count; c++) {
        const hr_audit_config *config = &audit->configs[c];
        const hr_audit_scores *s = &config->summary;
        int layer = 0, head = 0;
        double worst;
        worst_head(audit, config, &layer, &head, &worst);
        printf("%-*s %-10s %5.2f %9.3f %8.1f %6.2f  %8.2e %8.2e %8.2e %9.6f  layer %d head %d "
               "(%.2e)\n",
               width, config->id, hr_isa_name(config->kernel->isa), config->kv_bits,
               config->timing.median_ms, config->timing.gops, config->timing.x_baseline,
               s->quant.rel_l2, s->kernel.rel_l2, s->total.rel_l2, s->total.cosine, layer, head,
               worst);
    }
    print_baselines(audit, width);
    print_unsteady(audit);
    printf("Errors are relative L2 of O; times are medians of %d, attention alone, %d thread%s.\n",
           audit->configs[0].timing.repeats, audit->threads, cli_s(audit->threads));
}

static int32_t count_choice(const int32_t *choice, int32_t heads, int32_t config)
{
    int32_t count = 0;
    for (int32_t h = 0; h < heads; h++)
        count += choice[h] == config;
    return count;
}

/* The config after `last` in the order of bits, then of index; -1 for `last` gives the first. */
static int32_t next_by_bits(const hr_audit *audit, int32_t last)
{
    const hr_audit_config *configs = audit->configs;
    int32_t next = -1;
    for (int32_t c = 0; c < audit->config_count; c++) {
        bool after = last < 0 || configs[c].kv_bits > configs[last].kv_bits ||
                     (configs[c].kv_bits == configs[last].kv_bits && c > last);
        if (after && (next < 0 || configs[c].kv_bits < configs[next].kv_bits)) next = c;
    }
    return next;
}

/* The recipe that suits all heads, and which one nearly does. */
static int print_uniform(const hr_audit *audit, double budget)
{
    hr_audit_uniform uniform;
    if (hr_audit_choose_uniform(audit, budget, &uniform) != HR_OK) return cli_fail_library(NULL);
    if (uniform.config >= 0)
        printf("One recipe for all heads: %s, %.2f bits, worst head %.2e",
               audit->configs[uniform.config].id, audit->configs[uniform.config].kv_bits,
               uniform.worst);
    else
        printf("No recipe here meets it on all heads");
    if (uniform.narrower >= 0)
        printf("; %s (%.2f bits) breaks %d head%s", audit->configs[uniform.narrower].id,
               audit->configs[uniform.narrower].kv_bits, uniform.broken, cli_s(uniform.broken));
    printf(".\n");
    return CLI_OK;
}

static int print_choice(const hr_audit *audit, double budget, const hr_choice *kv_choice)
{
    int32_t heads = audit->head_offset[audit->layer_count];
    int32_t *choice = calloc((size_t)heads, sizeof *choice);
    if (!choice) return cli_fail("out of memory");
    if (hr_audit_choose(audit, budget, choice) != HR_OK) {
        free(choice);
        return cli_fail_library(NULL);
    }
    printf("\nWithin a relative L2 error of %g, of %d head%s:\n", budget, heads, cli_s(heads));
    for (int32_t c = next_by_bits(audit, -1); c >= 0; c = next_by_bits(audit, c)) {
        int32_t count = count_choice(choice, heads, c);
        if (count > 0)
            printf("  %4d live with %5.2f bits: %s\n", count, audit->configs[c].kv_bits,
                   audit->configs[c].id);
    }
    int32_t unmet = count_choice(choice, heads, -1);
    if (unmet > 0) printf("  %4d cannot live with any of these recipes\n", unmet);
    free(choice);
    printf("A recipe for each KV head: %.2f bits on average.\n", kv_choice->kv_bits);
    return print_uniform(audit, budget);
}

static int make_folder(const char *path)
{
    struct stat status;
    if (mkdir(path, 0777) == 0) return CLI_OK;
    int reason = errno;
    if (reason != EEXIST || stat(path, &status) != 0)
        return cli_fail("%s: cannot make the folder: %s", path, strerror(reason));
    if (!S_ISDIR(status.st_mode)) return cli_fail("%s: is a file; -o takes a folder", path);
    if (access(path, W_OK | X_OK) != 0)
        return cli_fail("%s: cannot write into the folder: %s", path, strerror(errno));
    return CLI_OK;
}

/* The paths of what an audit writes. */
typedef struct outputs {
    char json[PATH_BYTES], page[PATH_BYTES], choice[PATH_BYTES];
} outputs;

static int name_outputs(const char *folder, outputs *paths)
{
    const struct {
        const char *name;
        char *path;
    } files[] = {
        {"report.json", paths->json}, {"report.html", paths->page}, {"choice.json", paths->choice}};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        const int needed = snprintf(files[i].path, PATH_BYTES, "%s/%s", folder, files[i].name);
        if (needed < 0 || needed >= PATH_BYTES) return cli_fail("%s: the path is too long", folder);
    }
    return CLI_OK;
}

static int write_report(const char *json, const outputs *paths)
{
    if (hr_file_write_atomic(paths->json, json, strlen(json)) != HR_OK)
        return cli_fail_library(NULL);
    size_t size = 0;
    char *page = report_page_render(json, &size);
    if (!page) return cli_fail("out of memory for the report page");
    const hr_status status = hr_file_write_atomic(paths->page, page, size);
    free(page);
    return status == HR_OK ? CLI_OK : cli_fail_library(NULL);
}

static int publish(const audit_arguments *arguments, const hr_audit *audit)
{
    char *json = NULL;
    hr_choice *choice = NULL;
    outputs paths;
    int code = name_outputs(arguments->files.output, &paths);
    if (code != CLI_OK) return code;
    if (hr_audit_json(audit, arguments->budget, &json) != HR_OK ||
        hr_choice_from_audit(audit, arguments->budget, &choice) != HR_OK)
        code = cli_fail_library(NULL);
    if (code == CLI_OK) code = write_report(json, &paths);
    if (code == CLI_OK && hr_choice_write(choice, paths.choice) != HR_OK)
        code = cli_fail_library(NULL);
    if (code == CLI_OK && arguments->common.json) {
        puts(json);
    } else if (code == CLI_OK) {
        print_table(audit);
        code = print_choice(audit, arguments->budget, choice);
        printf("\nreport: %s\n        %s\nchoice: %s\n", paths.page, paths.json, paths.choice);
    }
    hr_choice_free(choice);
    free(json);
    return code;
}

/* The mask of a recording's lengths; kept by the caller as long as the options are. */
static int make_mask(const audit_arguments *arguments, const hr_recording *recording, hr_mask *mask,
                     hr_block_mask *blocks)
{
    const hr_recording_info info = hr_recording_get_info(recording);
    hr_attention_problem problem = {.batch = info.batch,
                                    .cu_seqlens_q = info.cu_seqlens,
                                    .cu_seqlens_kv = info.cu_seqlens,
                                    .mask.causal = info.causal};
    const int code = cli_mask_apply(&arguments->mask, &problem, blocks);
    *mask = problem.mask;
    return code;
}

static int run_audit(const audit_arguments *arguments, hr_audit_options *audit_options)
{
    hr_recording *recording = NULL;
    hr_profile *profile = NULL;
    hr_audit *audit = NULL;
    int32_t *layers = NULL;
    hr_mask mask;
    hr_block_mask blocks = {0};
    int code = CLI_OK;
    if (hr_recording_open(arguments->files.input, &recording) != HR_OK ||
        (arguments->files.profile && hr_profile_read(arguments->files.profile, &profile) != HR_OK))
        code = cli_fail_library(NULL);
    if (code == CLI_OK) cli_warn_rope(recording);
    if (code == CLI_OK && profile && hr_profile_check(profile, recording) != HR_OK)
        code = cli_fail_library(arguments->files.profile);
    if (code == CLI_OK)
        code =
            cli_select_layers(&arguments->common, recording, &layers, &audit_options->layer_count);
    if (code == CLI_OK && arguments->mask.given) {
        code = make_mask(arguments, recording, &mask, &blocks);
        audit_options->mask = &mask;
    }
    /* Made before the work, so that an unwritable place is known at once. */
    if (code == CLI_OK) code = make_folder(arguments->files.output);
    audit_options->layers = layers;
    audit_options->profile = profile;
    if (code == CLI_OK && hr_audit_run(recording, audit_options, &audit) != HR_OK)
        code = cli_fail_library(arguments->files.input);
    cli_progress_end();
    if (code == CLI_OK) code = publish(arguments, audit);
    hr_audit_free(audit);
    hr_block_mask_free(&blocks);
    hr_profile_free(profile);
    hr_recording_close(recording);
    free(layers);
    return code;
}

int verb_audit(int argc, char **argv)
{
    static const struct argp_child children[] = {
        {&cli_timed_argp, 0, NULL, 0}, {&cli_mask_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "REC",
        .doc =
            "Measure what each recipe costs in accuracy and buys in speed, per layer and head.\v"
            "Example: headroom audit data/minilm.safetensors --observer absmax,percentile,mse -o "
            "report",
        .children = children,
    };
    audit_arguments arguments = {
        .common = cli_common_defaults(),
        .mask = cli_mask_defaults(),
        .files = {.input_name = "recording", .output_name = "DIR"},
        .budget = 0.05,
    };
    cli_parse(&argp, argc, argv, &arguments);

    static hr_recipe recipes[CLI_RECIPES_MAX];
    const char *observers[LIST_MAX];
    hr_audit_options audit_options = {.threads = arguments.common.threads,
                                      .device = arguments.device,
                                      .repeats = (int32_t)arguments.repeats,
                                      .progress = show_progress};
    int code = cli_parse_recipes(arguments.files.recipe, recipes, &audit_options.recipe_count);
    if (code == CLI_OK)
        code = parse_observers(arguments.observers, observers, &audit_options.observer_count);
    if (code != CLI_OK) return code;
    if (audit_options.recipe_count > 0) audit_options.recipes = recipes;
    if (audit_options.observer_count > 0) audit_options.observers = observers;
    return run_audit(&arguments, &audit_options);
}
