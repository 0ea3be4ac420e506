/* Staged files, shared by staging.c (open files) and staging_finish.c (what closes turn them into).
 */
#ifndef MOBULA_FS_STAGING_INTERNAL_H
#define MOBULA_FS_STAGING_INTERNAL_H

#include "fs/internal.h"

#define STAGING_BUCKETS 4096u
#define SPEC_LIMIT_BYTES (16u << 20)

/* Whether the kernel writes and reads staged files by itself. */
static inline bool staged_passthrough(const struct fs *fs)
{
    return transport_passthrough(fs->transport) && store_staged_passthrough(fs->store);
}

struct state {
    struct state *next;
    uint64_t number;
    uint32_t opens;        /* handles */
    uint32_t unflushed;    /* handles for writing that were never closed */
    bool finishing;        /* some thread is at it */
    bool finished;         /* an object or a job already */
    bool spec;             /* in run/: nobody wants to wait for a tick */
    bool mediated;         /* all writes come to us, though other files have passthrough */
    struct job_hold *hold; /* arguments of a spec that a close accepted, until it is submitted */
    uint64_t released;     /* handle kept for the time until a mapping goes; 0 = none */
};

struct staging {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct state *buckets[STAGING_BUCKETS];
    pthread_t timer;
    pthread_cond_t tick;
    bool stop;
    struct jobs *jobs;
    uint64_t *retries; /* closed files to be tried again at the next tick */
    size_t retry_count, retry_capacity;
    struct fs *timer_fs; /* set once somebody waits for a release */
};

/* --- call these with the mutex held --- */

/* The file's state; NULL: none (or, when it was to be made, no memory). */
struct state *state_get(struct staging *staging, uint64_t number, bool make);
void state_drop(struct staging *staging, struct state *state);

/* --- without --- */

/* Finishes a staged file once, whoever asks first; others wait for that one. 0 also if there is
 * nothing to do; -EBUSY: somebody can still write it. */
MOB_MUST_CHECK errint_t finish(struct fs *fs, uint64_t number, bool only_if_unopened);
/* Finishes it when the last mapping that can write it goes. */
void finish_when_unwritten(struct fs *fs, uint64_t number);
/* Finishes it with others, in a moment. False: out of memory. */
bool finish_soon(struct fs *fs, uint64_t number);
/* What the parser of specs is to see: all of the file, or a byte more than it takes. */
MOB_MUST_CHECK errint_t spec_text(struct fs *fs, uint64_t number, char **text, size_t *bytes);
/* A job is its file's owner's; its outputs are as open to others as the file was made. */
struct job_credentials credentials(const struct staged_info *info);

#endif
