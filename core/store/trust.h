/* What of a state directory can be trusted after the server that worked on it has ended.
 *
 * A killed server leaves LMDB whole, since the kernel has every page, and memory as it was. A
 * machine that has crashed, or a copy of a directory that was in use, leaves anything. Two small
 * files tell which it is:
 *
 *   STATE/running  this boot of the machine, and which file data.mdb is: a server works on it, or
 *                  was killed. After a reboot or in a copy, one of these differs. While data.mdb is
 *                  made anew and memory is as it was: only the boot.
 *   STATE/clean    the server ended in order: length and XXH3-128 of data.mdb as it left it. */
#ifndef MOBULA_CORE_STORE_TRUST_H
#define MOBULA_CORE_STORE_TRUST_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"

struct trust {
    bool meta;   /* data.mdb is as a server left it */
    bool memory; /* so are the files in memory */
    bool fresh;  /* there was no data.mdb */
    bool clean;
};

/* Before data.mdb is opened. After an orderly end it reads all of data.mdb that is in use. Blocks
 * for the disk. -ENOMEM, or what the filesystem says. */
MOB_MUST_CHECK errint_t trust_read(int state_fd, struct trust *out, struct mob_error *err);

/* data.mdb and memory are what they should be, and a server begins to work on them. */
MOB_MUST_CHECK errint_t trust_running(int state_fd, struct mob_error *err);

/* data.mdb, whose first `used_bytes` are in use, is closed and synced. */
MOB_MUST_CHECK errint_t trust_clean(int state_fd, uint64_t used_bytes);

/* Removes data.mdb, and what was said of it: it is to be made anew. That memory is as it was stays
 * said, until trust_running(). */
MOB_MUST_CHECK errint_t trust_discard(int state_fd, bool memory, struct mob_error *err);

#endif
