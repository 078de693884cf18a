/* suspect.h — guesses what a wrong kernel did. */
#ifndef CHECK_SUSPECT_H
#define CHECK_SUSPECT_H
#include "data.h"

/* n: row of the answer. text gets "" if nothing fits. */
void check_suspect(const check_data *data, int64_t n, int64_t d, double got, char *text, size_t size);
void check_suspect_lse(const check_data *data, int64_t n, double got, char *text, size_t size);
#endif
