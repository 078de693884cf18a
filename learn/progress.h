/* progress.h — what the learner has done, in one JSON file: {"run": ["01", ...], "quiz": [...], "check":
 * [...]}. */
#ifndef LEARN_PROGRESS_H
#define LEARN_PROGRESS_H
const char *learn_progress_path(void);   /* LEARN_PROGRESS overrides */
int  learn_progress_has(const char *what, const char *lesson);
void learn_progress_add(const char *what, const char *lesson);
#endif
