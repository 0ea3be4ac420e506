/* Staged files, shared by staging.c (open files) and staging_finish.c (what closes turn them into).
 */
#ifndef MOBULA_FS_STAGING_INTERNAL_H
#define MOBULA_FS_STAGING_INTERNAL_H

#include <stdatomic.h>

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
    bool put_off;          /* one that may wait for the disk is, or will be */
    bool finished;         /* an object or a job already */
    bool spec;             /* in run/: nobody wants to wait for a tick */
    bool mediated;         /* all writes come to us, though other files have passthrough */
    struct job_hold *hold; /* arguments of a spec that a close accepted, until it is submitted */
    uint64_t released;     /* handle kept for the time until a mapping goes; 0 = none */
    char *failure;         /* why the last try to finish it failed; NULL: it did not */
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
    atomic_uint_fast64_t late_bytes; /* of writes that wait in memory: staging_late.c */
};

/* --- call these with the mutex held --- */

/* The file's state; NULL: none (or, when it was to be made, no memory). */
struct state *state_get(struct staging *staging, uint64_t number, bool make);
void state_drop(struct staging *staging, struct state *state);
/* Waits for a signal, but not longer than for two milliseconds. */
void wait_a_tick(struct staging *staging, pthread_cond_t *signal);

/* --- without --- */

/* Finishes a staged file once, whoever asks first; others wait for that one. 0 also if there is
 * nothing to do; -EBUSY: somebody can still write it. */
MOB_MUST_CHECK errint_t finish(struct fs *fs, uint64_t number, bool only_if_unopened);
/* Finishes it when the last mapping that can write it goes. */
void finish_when_unwritten(struct fs *fs, uint64_t number);
/* Finishes it with others, in a moment. False: out of memory. */
bool finish_soon(struct fs *fs, uint64_t number);
/* Why a file that is closed could not be finished: a new string; NULL: it could, or is not closed.
 */
char *staging_failure(struct fs *fs, uint64_t number);
/* What the parser of specs is to see: all of the file, or a byte more than it takes. */
MOB_MUST_CHECK errint_t spec_text(struct fs *fs, uint64_t number, char **text, size_t *bytes);
/* A job is its file's owner's; its outputs are as open to others as the file was made. */
struct job_credentials credentials(const struct staged_info *info);

/* What a close can still report: a spec that will be rejected, an object that would not fit. */
MOB_MUST_CHECK errint_t staging_check_close(struct fs *fs, uint64_t number);
/* Sets what FUSE_SETATTR asks for, and answers. Waits for the disk, if the file is there. */
void staging_set_attributes(fuse_req_t request, uint64_t node, const struct stat *wanted,
                            int valid);

/* --- staging_late.c --- */

/* Writes, and answers: now, or on a thread that may wait for the disk or for room in memory. */
void staging_write(fuse_req_t request, uint64_t number, const char *data, size_t bytes,
                   uint64_t offset);
/* The same, for what such a thread is needed for; false: not for this file, or out of memory. */
bool staging_put_off_attributes(fuse_req_t request, uint64_t node, const struct stat *wanted,
                                int valid);
/* Whether a part of it is on disk, and the rest in memory: it has outgrown that. */
bool is_split(struct fs *fs, uint64_t number);
bool staging_put_off_close(fuse_req_t request, uint64_t number);
/* As finish(), when nobody has it open any more. */
bool staging_put_off_finish(struct fs *fs, uint64_t number);

#endif
