/* Notifier: tells the kernel to drop names, from a thread of its own.
 *
 * Dropping a name takes the directory's lock in the kernel, which a request that this server is
 * about to answer may hold: so never from a thread that serves (libfuse, fuse_lowlevel_notify_inval_entry()). */
#ifndef MOBULA_FS_NOTIFY_H
#define MOBULA_FS_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/base/id.h"
#include "fs/transport.h"

struct notifier;

MOB_MUST_CHECK errint_t notifier_open(struct transport *transport, bool know_nothing,
                                      struct notifier **out);
void notifier_close(struct notifier *notifier);

/* The kernel was told about the node: it may have it cached. */
void notifier_mark(struct notifier *notifier, uint64_t node);
/* False only if the kernel was certainly never told. */
bool notifier_may_know(struct notifier *notifier, uint64_t node);

/* Drops the name (an ID) from the directory `parent`, soon. */
void notifier_drop_name(struct notifier *notifier, uint64_t parent, const struct mob_id *id);

#endif
