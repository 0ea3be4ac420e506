/* Removing what users have left in work_dir, without following a link and without stopping the
 * loop. */
#ifndef MOBULA_CORE_JOB_SCRATCH_H
#define MOBULA_CORE_JOB_SCRATCH_H

#include <pthread.h>
#include <stdbool.h>

#include "core/base/error.h"

/* Removes `name` in `dir_fd`, a file or a tree of any depth, which its owner may still be changing.
 * No link is followed, nothing outside is touched, neither stack nor descriptors grow with its
 * depth. Blocks as long as it takes. -ENOTEMPTY when somebody keeps filling it. 0 if there is none.
 */
MOB_MUST_CHECK errint_t scratch_remove(int dir_fd, const char *name);

/* A thread that does that for what is large. */
struct cleaner {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t thread;
    bool running, stop;
    struct cleaner_name *first;
};
MOB_MUST_CHECK errint_t cleaner_start(struct cleaner *cleaner);
/* Finishes what is queued. */
void cleaner_stop(struct cleaner *cleaner);
/* Removes `name` in `dir_fd`, which stays open until cleaner_stop(), soon. What is quick is done at
 * once. */
void cleaner_remove(struct cleaner *cleaner, int dir_fd, const char *name);

#endif
