/* cu2cpp.c — turn the three things in a .cu file that g++ can't read into C++; everything else stays as it is.
 *   kernel<T><<<grid, block, shared, stream>>>(args)   ->  sim_kernel("kernel", kernel<T>, grid, ...)(args)
 *   extern __shared__ float s[];                       ->  SIM_DYNAMIC_SHARED(float, s);
 *   asm volatile("mma..." : "+f"(d) : "r"(a) : ...);   ->  sim_ptx("mma...", { &(d) }, { (uint64_t)(a) });
 * A header beside the file that launches kernels is translated in place. Line numbers are kept.
 * Usage: cu2cpp lesson.cu > lesson.cpp */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_file(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "cu2cpp: %s: cannot open\n", path);
        exit(1);
    }
    char *text = NULL;
    size_t size = 0, room = 0;
    for (;;) {
        if (size + 65537 > room && !(text = realloc(text, room += 1 << 20))) exit(1);
        const size_t n = fread(text + size, 1, 65536, file);
        size += n;
        if (!n) break;
    }
    fclose(file);
    text[size] = 0;
    *length = size;
    return text;
}

/* Length of the comment or string or character literal that starts at s, else 0. */
static size_t literal(const char *s) {
    if (s[0] == '/' && s[1] == '/') return strcspn(s, "\n");
    if (s[0] == '/' && s[1] == '*') {
        const char *end = strstr(s + 2, "*/");
        return end ? (size_t)(end + 2 - s) : strlen(s);
    }
    if (s[0] == '"' || (s[0] == '\'' && !isalnum((unsigned char)s[-1]))) {
        size_t i = 1;
        while (s[i] && s[i] != s[0]) i += s[i] == '\\' && s[i + 1] ? 2 : 1;
        return s[i] ? i + 1 : i;
    }
    return 0;
}

static int is_word(char c) { return isalnum((unsigned char)c) || c == '_' || c == ':'; }

/* Where the kernel expression that ends before `end` begins: name or name<template arguments>. */
static size_t kernel_start(const char *out, size_t end) {
    size_t i = end;
    while (i && isspace((unsigned char)out[i - 1])) i--;
    if (i && out[i - 1] == '>') {
        int depth = 0;
        do {
            i--;
            depth += out[i] == '>' ? 1 : out[i] == '<' ? -1 : 0;
        } while (i && depth);
    }
    while (i && is_word(out[i - 1])) i--;
    return i;
}

typedef struct { char *text; size_t size, room; } buffer;

static void put(buffer *b, const char *s, size_t n) {
    if (b->size + n + 1 > b->room && !(b->text = realloc(b->text, b->room = 2 * (b->room + n + 64)))) exit(1);
    memcpy(b->text + b->size, s, n);
    b->size += n;
    b->text[b->size] = 0;
}

static void put_text(buffer *b, const char *s) { put(b, s, strlen(s)); }

/* At "<<<": replace the kernel expression already in `out` and copy the configuration. @return characters consumed. */
static size_t launch(buffer *out, const char *s) {
    const char *end = strstr(s, ">>>");
    if (!end) return 0;
    const size_t start = kernel_start(out->text, out->size);
    char *kernel = malloc(out->size - start + 1);
    if (!kernel) exit(1);
    strcpy(kernel, out->text + start);
    out->size = start;
    size_t name = 0;
    while (is_word(kernel[name])) name++;
    put_text(out, "sim_kernel(\"");
    put(out, kernel, name);
    put_text(out, "\", ");
    put_text(out, kernel);
    put_text(out, ", ");
    put(out, s + 3, (size_t)(end - s - 3));
    put_text(out, ")");
    free(kernel);
    return (size_t)(end + 3 - s);
}

/* At "extern __shared__ [__align__(n)] type name[];". @return characters consumed, or 0 if it isn't that. */
static size_t dynamic_shared(buffer *out, const char *s) {
    const char *p = s + strlen("extern");
    while (isspace((unsigned char)*p)) p++;
    if (strncmp(p, "__shared__", 10)) return 0;
    p += 10;
    const char *end = strchr(p, ';'), *bracket = end ? memchr(p, '[', (size_t)(end - p)) : NULL;
    if (!bracket) return 0;
    const char *align = strstr(p, "__align__");
    if (align && align < bracket) p = strchr(align, ')') + 1;
    const char *name = bracket;
    while (name > p && isspace((unsigned char)name[-1])) name--;
    const char *name_end = name;
    while (name > p && is_word(name[-1])) name--;
    put_text(out, "SIM_DYNAMIC_SHARED(");
    put(out, p, (size_t)(name - p));
    put_text(out, ", ");
    put(out, name, (size_t)(name_end - name));
    put_text(out, ");");
    return (size_t)(end + 1 - s);
}

/* The end of the string or parenthesis that starts at s. */
static const char *group_end(const char *s) {
    if (*s == '"') return s + literal(s);
    int depth = 0;
    do {
        const size_t n = literal(s);
        depth += n ? 0 : *s == '(' ? 1 : *s == ')' ? -1 : 0;
        s += n ? n : 1;
    } while (*s && depth);
    return s;
}

/* At "asm": its text and operands become the arguments of sim_ptx. @return characters consumed, or 0 if it isn't that. */
static size_t assembly(buffer *out, const char *s) {
    static const char *const before[] = { "", "&(", "(uint64_t)(" };
    const char *p = s + strlen("asm");
    int section = 0;                    /* 0 text, 1 outputs, 2 inputs, 3 clobbers */
    while (isspace((unsigned char)*p)) p++;
    if (!strncmp(p, "volatile", 8)) p += 8;
    while (isspace((unsigned char)*p)) p++;
    if (*p++ != '(') return 0;
    put_text(out, "sim_ptx(");
    for (; *p && *p != ')';) {
        const char *end = *p == '"' || *p == '(' ? group_end(p) : p + 1;
        if (*p == ':' && section < 3) put_text(out, ++section == 1 ? ", { " : section == 2 ? " }, { " : "");
        else if (*p == '(' && section && section < 3) {
            put_text(out, before[section]);
            put(out, p + 1, (size_t)(end - p - 1));
        } else if (section < 3 && !(*p == '"' && section)) put(out, p, (size_t)(end - p));    /* no constraints */
        p = end;
    }
    for (; section < 2; section++) put_text(out, section ? " }, { " : ", { ");
    put_text(out, " })");
    return (size_t)(p + 1 - s);
}

static void translate(buffer *out, const char *path, int first_line, const char *text);

/* At `#include "name"`: if that file lies beside `path` and launches kernels, put its translation here. @return consumed */
static size_t include(buffer *out, const char *path, const char *text, const char *s) {
    char name[256], beside[1024];
    if (sscanf(s, "#include \"%255[^\"]\"", name) != 1) return 0;
    const char *slash = strrchr(path, '/');
    snprintf(beside, sizeof beside, "%.*s%s", slash ? (int)(slash + 1 - path) : 0, path, name);
    FILE *file = fopen(beside, "rb");
    if (!file) return 0;
    fclose(file);
    size_t length;
    char *header = read_file(beside, &length);
    size_t consumed = 0;
    if (strstr(header, "<<<")) {
        int line = 1;
        for (const char *c = text; c < s; c++) line += *c == '\n';
        translate(out, beside, 1, header);
        char back[1100];
        snprintf(back, sizeof back, "\n#line %d \"%s\"\n", line, path);
        put_text(out, back);
        consumed = strcspn(s, "\n");
    }
    free(header);
    return consumed;
}

static void translate(buffer *out, const char *path, int first_line, const char *text) {
    char line[1100];
    snprintf(line, sizeof line, "#line %d \"%s\"\n", first_line, path);
    put_text(out, line);
    for (const char *s = text; *s;) {
        size_t n = s > text ? literal(s) : (*s == '/' ? literal(s) : 0);
        if (n) put(out, s, n);
        else if (!strncmp(s, "<<<", 3)) n = launch(out, s);
        else if (!strncmp(s, "#include \"", 10)) n = include(out, path, text, s);
        else if (!strncmp(s, "extern", 6) && (s == text || !is_word(s[-1]))) n = dynamic_shared(out, s);
        else if (!strncmp(s, "asm", 3) && !is_word(s[3]) && (s == text || !is_word(s[-1]))) n = assembly(out, s);
        if (!n) put(out, s, n = 1);
        s += n;
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: cu2cpp lesson.cu > lesson.cpp\n");
        return 2;
    }
    size_t length;
    char *text = read_file(argv[1], &length);
    buffer out = { 0 };
    translate(&out, argv[1], 1, text);
    fwrite(out.text, 1, out.size, stdout);
    free(out.text);
    free(text);
    return ferror(stdout) != 0;
}
