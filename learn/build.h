/* build.h — build a lesson and run it, bounded in time, with one clear line when it can't be done. */
#ifndef LEARN_BUILD_H
#define LEARN_BUILD_H

typedef enum { CUDA_PROGRAM, C_PROGRAM, C_KERNEL, CUDA_KERNEL, PYTHON_PROGRAM } learn_kind;
typedef enum { LEARN_ANYWHERE, LEARN_SIMULATOR, LEARN_GPU } learn_where;

typedef struct learn_lesson {
    const char *number;
    int week;
    learn_kind kind;
    const char *path, *title, *exercise, *hint;   /* paths below learn/ */
} learn_lesson;

extern const learn_lesson learn_lessons[];        /* ends with number NULL */

/* Build and run `file` (NULL: the lesson itself). `facts`: file for the numbers it counts, or NULL. @return
 * exit code */
int learn_execute(const learn_lesson *lesson, const char *file, learn_where where, const char *facts);
int learn_doctor(void);
const char *learn_folder(void);         /* learn/ of this checkout; LEARN_FOLDER overrides */
const char *learn_build_folder(void);   /* where programs are built; LEARN_BUILD overrides */
#endif
