/* Parked requests: opens that wait for an object or a job, look-ups that wait for a release.
 *
 * A parked request costs memory only. Whoever takes it out of the table first (what it waited for,
 * a signal, a deadline) owns it and must reply; everybody else finds nothing. */
#ifndef MOBULA_FS_WAITING_H
#define MOBULA_FS_WAITING_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"
#include "fs/transport.h"

struct waiting;

enum waiting_kind { WAITING_OBJECT, WAITING_JOB, WAITING_RELEASE };

struct parked {
    fuse_req_t request;
    enum waiting_kind kind;
    uint64_t node;   /* what is opened, or looked up in */
    uint64_t number; /* what is waited for */
    uint64_t token;  /* of the store or the jobs; 0 = not known yet */
    uint64_t unique;
    uint32_t open_flags;
    uint32_t pid;
    uint32_t tries;       /* how often it was parked */
    uint64_t deadline_ns; /* WAITING_RELEASE */
    char *name;           /* WAITING_RELEASE; freed by who takes it */
};

MOB_MUST_CHECK errint_t waiting_open(struct waiting **out);
void waiting_close(struct waiting *waiting);

/* Adds one; *id is never 0. -ENOMEM. */
MOB_MUST_CHECK errint_t waiting_add(struct waiting *waiting, const struct parked *parked,
                                    uint64_t *id);
/* Takes it out: true once, for one caller. */
bool waiting_take(struct waiting *waiting, uint64_t id, struct parked *out);
/* Keeps the token for who takes it. False: it has been taken already. */
bool waiting_set_token(struct waiting *waiting, uint64_t id, uint64_t token);

/* Takes one of `kind` that waits for `number`, or whose deadline has passed (`number` 0). */
bool waiting_take_for(struct waiting *waiting, enum waiting_kind kind, uint64_t number,
                      uint64_t now_ns, struct parked *out);
uint64_t waiting_count(struct waiting *waiting);
/* Whether a WAITING_RELEASE is there (the only kind that is asked for). */
bool waiting_has(struct waiting *waiting, enum waiting_kind kind);

#endif
