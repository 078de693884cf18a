/* team.h — a few threads that do one thing together: for ceilings and baselines, which must not use the
 * library's. */
#ifndef CLI_TEAM_H
#define CLI_TEAM_H

typedef struct team team;

/* @return a team of `threads` (the caller is one of them), or NULL if the threads can't be had. */
team *team_create(int threads);
/* work(arg, member) on every member at once, member = 0 .. threads - 1; returns when all are done. */
void  team_run(team *t, void (*work)(void *arg, int member), void *arg);
int   team_threads(const team *t);
void  team_destroy(team *t);
#endif
