/* learn.c — the course's one command: list, next, run, check, quiz, hint, status, doctor.
 * A lesson is a program; this builds and runs it (on the GPU, or under the simulator), and keeps progress in
 * one file. */
#include "build.h"
#include "progress.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const learn_lesson learn_lessons[] = {
#define LESSON(number, week, kind, path, title, exercise, hint)                                              \
    { number, week, kind, path, title, exercise, hint },
#include "lessons.def"
#undef LESSON
    { NULL, 0, CUDA_PROGRAM, NULL, NULL, NULL, NULL },
};

typedef struct { const char *lesson, *fact; double tolerance; const char *question; } quiz;
static const quiz quizzes[] = {
#define QUIZ(lesson, fact, tolerance, question) { lesson, fact, tolerance, question },
#include "quizzes.def"
#undef QUIZ
};
enum { QUIZZES = sizeof quizzes / sizeof *quizzes };

static const learn_lesson *lesson_named(const char *word) {
    char number[8];
    if (!word) return NULL;
    snprintf(number, sizeof number, strlen(word) == 1 ? "0%s" : "%s", word);
    for (const learn_lesson *l = learn_lessons; l->number; l++)
        if (!strcmp(l->number, number) || strstr(l->path, word)) return l;
    return NULL;
}

static const learn_lesson *first_open(void) {
    for (const learn_lesson *l = learn_lessons; l->number; l++)
        if (!learn_progress_has("run", l->number)) return l;
    return NULL;
}

/* ---- list, next, status, hint ---- */

static int list(void) {
    int week = 0;
    for (const learn_lesson *l = learn_lessons; l->number; l++) {
        if (l->week != week) printf("\nweek %d\n", l->week);
        week = l->week;
        printf("  %s %-46s %s%s\n", l->number, l->title, l->path,
               learn_progress_has("run", l->number) ? "   (done)" : "");
    }
    printf("\nlearn run 01 --sim runs the first one without a GPU.\n");
    return 0;
}

static int next(void) {
    const learn_lesson *l = first_open();
    if (!l) printf("All lessons done. Write your own: attn bench --kernel ./mine.c\n");
    else
        printf("Next: lesson %s, %s.\n  read  learn/%s\n  run   learn run %s\n", l->number, l->title, l->path,
               l->number);
    return 0;
}

static int status(void) {
    int done = 0, all = 0, week = 0;
    for (const learn_lesson *l = learn_lessons; l->number; l++, all++) {
        if (l->week != week) printf("%sweek %-2d ", week ? "\n" : "", l->week);
        week = l->week;
        const int ran = learn_progress_has("run", l->number),
                  checked = learn_progress_has("check", l->number);
        printf(" %s[%c%c%c]", l->number, ran ? 'r' : '.', learn_progress_has("quiz", l->number) ? 'q' : '.',
               checked ? 'e' : '.');
        done += ran;
    }
    printf("\n\n%d of %d lessons run. r = run, q = quiz answered, e = exercise accepted. Kept in %s\n", done,
           all, learn_progress_path());
    return 0;
}

static int hint(const learn_lesson *l) {
    printf("%s\n", l->hint);
    return 0;
}

/* ---- run, check ---- */

static int run(const learn_lesson *l, learn_where where) {
    const int code = learn_execute(l, NULL, where, NULL);
    if (code == 0) learn_progress_add("run", l->number);
    return code;
}

/* The learner's file (or the exercise as shipped, which has holes and must fail) under the same checks. */
static int check(const learn_lesson *l, const char *mine, learn_where where) {
    if (!mine && !*l->exercise) {
        printf("Lesson %s has no exercise file: copy learn/%s, change it, and check that: learn check %s "
               "--my FILE\n", l->number, l->path, l->number);
        return 2;
    }
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", learn_folder(), l->exercise);
    const int code = learn_execute(l, mine ? mine : path, where, NULL);
    if (code == 0) learn_progress_add("check", l->number);
    else if (!mine)
        printf("\nThe file still has its holes: edit learn/%s (learn hint %s helps).\n", l->exercise,
               l->number);
    return code;
}

/* ---- quiz ---- */

static int fact_value(const char *path, const char *name, double *value) {
    FILE *file = fopen(path, "r");
    char line[512];
    int found = 0;
    while (file && fgets(line, sizeof line, file)) {
        char *tab = strchr(line, '\t');
        if (!tab) continue;
        *tab = 0;
        if (!strcmp(line, name)) {
            *value = strtod(tab + 1, NULL);
            found = 1;
        }
    }
    if (file) fclose(file);
    return found;
}

static int ask(const char *question, double *answer) {
    char line[128];
    printf("%s\n> ", question);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) return 0;
    char *end;
    *answer = strtod(line, &end);
    return end != line;
}

static int quiz_lesson(const learn_lesson *l, learn_where where) {
    int asked = 0, right = 0;
    double answers[QUIZZES];
    for (int i = 0; i < QUIZZES; i++) {
        if (strcmp(quizzes[i].lesson, l->number)) continue;
        if (!ask(quizzes[i].question, &answers[i])) {
            fprintf(stderr, "learn: a number is needed\n");
            return 2;
        }
        asked++;
    }
    if (!asked) {
        printf("Lesson %s has no questions.\n", l->number);
        return 0;
    }
    char facts[1024];
    snprintf(facts, sizeof facts, "%s/facts.txt", learn_build_folder());
    remove(facts);
    printf("\nRunning the lesson to find out ...\n");
    if (learn_execute(l, NULL, where, facts)) return 1;
    printf("\n");
    for (int i = 0; i < QUIZZES; i++) {
        if (strcmp(quizzes[i].lesson, l->number)) continue;
        double truth;
        if (!fact_value(facts, quizzes[i].fact, &truth)) {
            printf("%-32s was not counted by this run (try --sim)\n", quizzes[i].fact);
            continue;
        }
        const double error = answers[i] > truth ? answers[i] - truth : truth - answers[i];
        const int ok = error <= quizzes[i].tolerance * (truth < 0 ? -truth : truth);
        printf("%-32s you said %g, your run counted %g: %s\n", quizzes[i].fact, answers[i], truth,
               ok ? "right" : "not yet");
        right += ok;
    }
    if (right == asked) learn_progress_add("quiz", l->number);
    return right == asked ? 0 : 1;
}

/* ---- the command ---- */

static int usage(void) {
    fprintf(stderr,
            "usage: learn list | next | status | doctor\n"
            "       learn run N [--sim | --gpu]           build and run lesson N\n"
            "       learn check N [--my FILE] [--sim | --gpu]   check your version of its exercise\n"
            "       learn quiz N [--sim | --gpu]          predict, run, compare\n"
            "       learn hint N\n"
            "Without --sim or --gpu: the GPU if there is one and nvcc, else the simulator.\n");
    return 2;
}

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "", *name = NULL, *mine = NULL;
    learn_where where = LEARN_ANYWHERE;
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--sim")) where = LEARN_SIMULATOR;
        else if (!strcmp(argv[i], "--gpu")) where = LEARN_GPU;
        else if (!strcmp(argv[i], "--my") && i + 1 < argc) mine = argv[++i];
        else if (argv[i][0] != '-' && !name) name = argv[i];
        else return usage();
    }
    if (!strcmp(verb, "list")) return list();
    if (!strcmp(verb, "next")) return next();
    if (!strcmp(verb, "status")) return status();
    if (!strcmp(verb, "doctor")) return learn_doctor();
    if (!strcmp(verb, "--help") || !strcmp(verb, "help")) { usage(); return 0; }
    const learn_lesson *l = lesson_named(name);
    if (strcmp(verb, "run") && strcmp(verb, "check") && strcmp(verb, "quiz") && strcmp(verb, "hint"))
        return usage();
    if (!l) {
        fprintf(stderr, "learn: no lesson \"%s\": learn list shows them\n", name ? name : "");
        return 2;
    }
    if (!strcmp(verb, "run")) return run(l, where);
    if (!strcmp(verb, "check")) return check(l, mine, where);
    if (!strcmp(verb, "quiz")) return quiz_lesson(l, where);
    return hint(l);
}
