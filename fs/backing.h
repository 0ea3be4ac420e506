/* Passthrough: data files registered with the kernel. All opens of one inode must name the same
 * registration, so each data file has one at a time; idle ones are kept for the next open, up to a
 * limit. */
#ifndef MOBULA_FS_BACKING_H
#define MOBULA_FS_BACKING_H

#include <stdint.h>

#include "core/base/error.h"
#include "fs/handles.h"
#include "fs/transport.h"

struct backing;

/* Takes up what an earlier server registered. -ENOMEM. */
MOB_MUST_CHECK errint_t backing_open(struct backing_slot *slots, struct transport *transport,
                                     struct backing **out);
void backing_close(struct backing *backing);

/* The registration of `file` for one more open; made from `fd` if there is none (then `fd` < 0 is
 * an error). Returns the backing ID (> 0), or a negative errno: -ENFILE when all slots are in use,
 * or the kernel's. */
int backing_get(struct backing *backing, uint64_t file, int fd);
/* True if backing_get() needs no descriptor. */
int backing_known(struct backing *backing, uint64_t file);
/* One open less. */
void backing_put(struct backing *backing, uint64_t file);
/* Counts an open that lives on from an earlier server. */
void backing_adopt(struct backing *backing, uint64_t file);
/* The data file is about to be removed: closes the registration now, or at the last put. */
void backing_forget(struct backing *backing, uint64_t file);

#endif
