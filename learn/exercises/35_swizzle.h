/* 35_swizzle.h — the checker of exercise 35. Define: int place(int row, int column), where a tile's number lies in shared
 * memory, in numbers of 16 bits: a tile of 64 x 64 without padding. */
#include <stdio.h>
#include <stdlib.h>

static int place(int row, int column);

/* Rows first .. first + 7 of one column of 8 numbers, read at once by ldmatrix: how many times must the banks be asked? */
static int ways(int first, int column) {
    int hits[8] = { 0 }, most = 0;                  /* 32 banks of 4 bytes = 8 groups of 16 bytes */
    for (int row = first; row < first + 8; row++) {
        const int group = place(row, column) / 8 % 8;
        most = ++hits[group < 0 ? 0 : group] > most ? hits[group < 0 ? 0 : group] : most;
    }
    return most;
}

static int say(int ok, const char *claim) {
    printf("  %s  %s\n", ok ? "yes" : "NO ", claim);
    return !ok;
}

int main(void) {
    static int seen[64 * 64];
    int inside = 1, once = 1, whole = 1, row_ways = 0, worst = 0, failed = 0;
    printf("Exercise 35: a tile of 64 x 64 numbers in shared memory, no padding, no bank conflict\n");
    for (int row = 0; row < 64; row++)
        for (int column = 0; column < 64; column++) {
            const int at = place(row, column), group = place(row, column / 8 * 8);
            inside = inside && at >= 0 && at < 64 * 64;
            once = once && at >= 0 && at < 64 * 64 && !seen[at]++;
            whole = whole && group % 8 == 0 && at == group + column % 8;
        }
    for (int row = 0; row < 64; row += 8)
        for (int column = 0; column < 64; column += 8) worst = ways(row, column) > worst ? ways(row, column) : worst;
    for (int row = 0; row < 64; row++) {            /* 8 threads store a row, 16 bytes each */
        int hits[8] = { 0 };
        for (int column = 0; column < 64; column += 8) {
            const int group = place(row, column) / 8 % 8;
            hits[group < 0 ? 0 : group]++;
        }
        for (int g = 0; g < 8; g++) row_ways = hits[g] > row_ways ? hits[g] : row_ways;
    }
    failed += say(inside, "every number lies inside 64 x 64 numbers");
    failed += say(once, "no two numbers lie in one place");
    failed += say(whole, "8 neighbours stay together, aligned to 16 bytes: ldmatrix and 16-byte stores need that");
    printf("       a column of 8 rows is read in %d ways, a row is stored in %d\n", worst, row_ways);
    failed += say(worst == 1 && row_ways == 1, "neither waits for a bank");
    FILE *facts = getenv("LEARN_FACTS") ? fopen(getenv("LEARN_FACTS"), "a") : NULL;
    if (facts) {
        fprintf(facts, "16-byte group of row 5, column 8\t%d\n", place(5, 8) / 8 % 8);
        fclose(facts);
    }
    printf("\n%s\n", failed ? "FAILED: see the lines marked NO" : "All of it holds.");
    return failed != 0;
}
