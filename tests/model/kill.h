/* Parts of the kill test: see kill.c. */
#ifndef MOBULA_TESTS_MODEL_KILL_H
#define MOBULA_TESTS_MODEL_KILL_H

#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/model/support.h"

enum {
    WORKER_LIMIT = 8,
    FACT_LIMIT = 150, /* acknowledged objects that a worker keeps */
    HOLD_LIMIT = 6,
};

/* What all processes see. */
struct kill_shared {
    struct watched watched[WORKER_LIMIT + 1]; /* the last is the killer's */
    _Atomic uint64_t operations, errors, lost, interrupted, refused;
    _Atomic bool stop;
    /* --both: the workers pause while there is no mount. `down` is set before the kill. */
    _Atomic bool down;
    _Atomic unsigned paused;
    _Atomic unsigned round;
};
extern struct kill_shared *kill_shared;

struct kill_options {
    const char *dir;
    bool plain; /* `dir` is an ordinary directory: tries the test itself */
    bool jobs;
    bool both;
    unsigned large_mib; /* of the largest files; 0: no more than memory always holds */
};
extern struct kill_options kill_options;

/* An acknowledged object: its name, and its content by seed and size. */
struct fact {
    char name[64];
    char id[41];
    uint64_t seed;
    uint64_t size;
};

/* What an operation that the mount's death cut off may have left: each is looked at after the next
 * up. */
enum doubt {
    DOUBT_NONE,
    DOUBT_PUT,
    DOUBT_CLOSED /* put, and close returned 0 */,
    DOUBT_RENAME,
    DOUBT_UNLINK
};

struct worker {
    unsigned number;
    struct dice dice;
    char directory[3500]; /* MNT/staging/wN */
    struct fact facts[FACT_LIMIT];
    unsigned fact_count;
    struct {
        int fd;
        struct fact fact;
    } holds[HOLD_LIMIT];
    unsigned hold_count;
    uint64_t next_name;
    enum doubt doubt;
    struct fact doubt_fact; /* DOUBT_PUT: the new one; else as it was before */
    char doubt_name[64];    /* DOUBT_RENAME: the new name */
    int open_fd, second_fd; /* of the operation under way, closed when it is cut off */
    sigjmp_buf cut_off;
};

/* Plays until kill_shared->stop; verifies and removes everything at the end. Returns an exit
 * status. */
int worker_run(struct worker *worker);

/* --- one operation each (kill_operations.c) --- */
void work_put(struct worker *worker);
void work_copy_large(struct worker *worker);
void work_put_large(struct worker *worker);
void work_get_again(struct worker *worker);
void work_get(struct worker *worker);
void work_rename(struct worker *worker);
void work_replace(struct worker *worker);
void work_unlink(struct worker *worker);
void work_hold(struct worker *worker);
void work_release(struct worker *worker);
void work_list(struct worker *worker);
void work_directory(struct worker *worker);
void work_map(struct worker *worker);
void work_job(struct worker *worker);
void work_wait(struct worker *worker);

/* Compares all of `fact` under its name; counts it as lost if it isn't there or differs. */
void fact_verify(struct worker *worker, const struct fact *fact);
const char *fact_path(struct worker *worker, const char *name);
/* Settles what an operation that was cut off has left. */
void doubt_settle(struct worker *worker);

/* An operation failed: a line on standard error and a count; or, when the mount was taken down on
 * purpose
 * (--both), the operation is given up (does not return). */
void work_error(struct worker *worker, const char *what, const char *path, int error);
void work_lost(struct worker *worker, const char *what, const struct fact *fact);

#endif
