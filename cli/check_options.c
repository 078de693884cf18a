/* check_options.c — options to cases: problems x fills x lengths x layouts. */
#include "check_options.h"
#include "gpu_session.h"
#include "problem_options.h"
#include "terminal.h"
#include <stdlib.h>
#include <string.h>

static const char fill_words[] =
#define CHECK_FILL(name, description) #name " "
#include "fills.def"
#undef CHECK_FILL
    "all";

const cli_option check_case_options[] = {
    { .name = "shape", .type = CLI_TEXT, .argument = "NAME", .list = 2,
      .summary = "Named shapes of the edge grid (check/shapes.def) instead of --b, --hq and so on." },
    { .name = "grid", .type = CLI_FLAG, .summary = "Every named shape with every dtype and fill." },
    { .name = "random", .type = CLI_INTEGER, .argument = "N", .low = 1, .high = 1000000,
      .summary = "N random problems of all kinds, from --seed on." },
    { .name = "fill", .type = CLI_CHOICE, .argument = "NAME", .choices = fill_words, .list = 2,
      .summary = "What the numbers look like (all)." },
    { .name = "lengths", .type = CLI_CHOICE, .argument = "HOW", .choices = "full random edges", .list = 2,
      .summary = "How ragged lengths are drawn, where the problem has any (random)." },
    { .name = "layout", .type = CLI_CHOICE, .argument = "ORDER", .choices = "bshd bhsd gaps", .list = 2,
      .summary = "Strides: dense in this order, or with gaps after every dimension (bshd)." },
    { .name = "no-lse", .type = CLI_FLAG, .summary = "Don't ask for LSE." },
    { .name = "seed", .type = CLI_INTEGER, .argument = "N", .summary = "Seed of the numbers (1)." },
    { .name = NULL },
};

/* ---- growing a list ---- */

static int add(check_plan *plan, const check_case *c) {
    if ((plan->count & (plan->count - 1)) == 0) {       /* full at powers of two */
        const size_t room = plan->count ? 2 * (size_t)plan->count : 1;
        check_case *more = realloc(plan->cases, room * sizeof *more);
        if (!more) {
            cli_error("out of memory");
            return CLI_FAILED;
        }
        plan->cases = more;
    }
    plan->cases[plan->count++] = *c;
    return CLI_OK;
}

static int is_ragged(const attn_problem *p) {
    return p->packed_q || p->packed_kv || p->has_seqused_q || p->has_seqused_kv || p->has_leftpad_kv ||
           p->page_size;
}

static int items(const cli_arguments *a, const char *name) {
    return cli_given(a, name) ? cli_given(a, name) : 1;
}

/* One problem with all fills, lengths and layouts asked for. */
static int add_fills(check_plan *plan, const cli_arguments *a, check_case c) {
    const int every = !cli_given(a, "fill") || cli_choice(a, "fill", 0) == CHECK_FILLS;
    const int fills = every ? CHECK_FILLS : cli_given(a, "fill");
    const int lengths = is_ragged(&c.problem) ? items(a, "lengths") : 1;
    c.no_lse = cli_flag(a, "no-lse");
    c.seed = (uint64_t)cli_integer(a, "seed", 1);
    for (int f = 0; f < fills; f++)
        for (int n = 0; n < lengths; n++)
            for (int y = 0; y < items(a, "layout"); y++) {
                c.fill = every ? (check_fill)f : (check_fill)cli_choice_item(a, "fill", f);
                c.lengths = CHECK_LENGTHS_FULL;
                if (is_ragged(&c.problem))
                    c.lengths = cli_given(a, "lengths") ? (check_lengths)cli_choice_item(a, "lengths", n)
                                                        : CHECK_LENGTHS_RANDOM;
                c.layout = cli_given(a, "layout") ? (check_layout)cli_choice_item(a, "layout", y)
                                                  : CHECK_LAYOUT_BSHD;
                if (add(plan, &c)) return CLI_FAILED;
            }
    return CLI_OK;
}

/* ---- sources of cases ---- */

/* A shape with each --dtype; the grid without --dtype takes all. */
static int add_shape(check_plan *plan, const cli_arguments *a, const check_case *shape, int all_dtypes) {
    const int given = cli_given(a, "dtype"), count = given ? given : all_dtypes ? 3 : 1;
    for (int d = 0; d < count; d++) {
        check_case c = *shape;
        c.problem.dtype =
            given ? (attn_dtype)(1 + cli_choice_item(a, "dtype", d)) : (attn_dtype)(ATTN_F32 + d);
        if (cli_given(a, "o-dtype")) c.problem.o_dtype = (attn_dtype)(1 + cli_choice(a, "o-dtype", 0));
        if (add_fills(plan, a, c)) return CLI_FAILED;
    }
    return CLI_OK;
}

static int add_named(check_plan *plan, const cli_arguments *a) {
    for (int n = 0; n < cli_given(a, "shape"); n++) {
        int found = 0;
        for (int i = 0; i < check_shape_count; i++) {
            if (strcmp(check_shapes[i].shape, cli_text_item(a, "shape", n))) continue;
            found = 1;
            if (add_shape(plan, a, &check_shapes[i], 0)) return CLI_FAILED;
        }
        if (found) continue;
        cli_error("--shape %s: no such shape in check/shapes.def", cli_text_item(a, "shape", n));
        return CLI_USAGE;
    }
    return CLI_OK;
}

static int add_problems(check_plan *plan, const cli_arguments *a) {
    attn_problem *problems;
    int count, code = cli_problem_list(a, &problems, &count);
    for (int i = 0; !code && i < count; i++) {
        attn_problem resolved = problems[i];
        check_case c = { .problem = problems[i], .shape = "custom" };
        if (attn_problem_resolve(&resolved)) {
            cli_error("%s", attn_last_error());
            code = CLI_USAGE;
        } else {
            code = add_fills(plan, a, c);
        }
    }
    free(problems);
    return code;
}

int check_plan_create(check_plan *plan, const cli_arguments *a) {
    const attn_device device = cli_choice(a, "backend", 0) ? ATTN_CUDA : ATTN_CPU;
    int code = CLI_OK;
    *plan = (check_plan){ .is_grid = cli_flag(a, "grid") };
    if (cli_inputs_given(a)) {
        code = cli_inputs_open(&plan->files, a);
        plan->count = code ? 0 : cli_inputs_count(plan->files);
    } else if (plan->is_grid) {
        for (int i = 0; !code && i < check_shape_count; i++) code = add_shape(plan, a, &check_shapes[i], 1);
    } else if (cli_given(a, "random")) {
        for (int64_t i = 0; !code && i < cli_integer(a, "random", 0); i++) {
            const check_case c = check_random_case((uint64_t)(cli_integer(a, "seed", 1) + i));
            code = add(plan, &c);
        }
    } else {
        code = cli_given(a, "shape") ? add_named(plan, a) : add_problems(plan, a);
    }
    for (int i = 0; plan->cases && i < plan->count; i++) plan->cases[i].problem.device = device;
    if (code) check_plan_free(plan);
    return code;
}

void check_plan_free(check_plan *plan) {
    cli_inputs_close(plan->files);
    free(plan->cases);
    *plan = (check_plan){ 0 };
}

/* ---- tensors ---- */

static int input_data(const check_plan *plan, int i, const cli_arguments *a, check_data **data, char *name,
                      size_t size) {
    cli_input input;
    const int code = cli_inputs_case(&input, plan->files, i, a);
    if (code) return code;
    snprintf(name, size, "%s%s", cli_text(a, "in") ? cli_text(a, "in") : "files", *input.prefix ? " " : "");
    snprintf(name + strlen(name), size - strlen(name), "%s", input.prefix);
    const check_memory *memory;
    if (gpu_session_memory(input.problem.device, a, &memory)) {
        cli_input_free(&input);
        return CLI_FAILED;
    }
    const attn_status status = check_data_from(data, &input.problem, &input.tensors, memory);
    cli_input_free(&input);
    if (!status) return CLI_OK;
    cli_error("%s: %s: %s", name, attn_status_name(status), attn_last_error());
    return status == ATTN_INVALID ? CLI_USAGE : CLI_FAILED;
}

int check_plan_data(const check_plan *plan, int i, const cli_arguments *a, check_data **data, char *name,
                    size_t size) {
    if (plan->files) return input_data(plan, i, a, data, name, size);
    const check_case *c = &plan->cases[i];
    snprintf(name, size, "%s %s", c->shape, check_fill_names[c->fill]);
    /* by turns the end of every tensor and its beginning lie at a guard page */
    const check_memory *memory;
    if (gpu_session_memory(c->problem.device, a, &memory)) return CLI_FAILED;
    const attn_status status = check_data_create(data, c, memory, (i & 1) == 0);
    if (!status) return CLI_OK;
    cli_error("%s: %s: %s", name, attn_status_name(status), attn_last_error());
    return status == ATTN_INVALID ? CLI_USAGE : CLI_FAILED;
}
