/* Prefill: the content of a small object goes to the kernel with the answer to its first open, so
 * that who reads it need not ask again.
 *
 * The kernel takes content at any time (FUSE_NOTIFY_STORE), but waits for pages that are locked,
 * and a page is locked while a READ of it is on its way: perhaps to the very thread that would wait
 * for it, which then could not even be killed. So content is stored only while nobody can read it:
 * the file is open once, by who is not answered yet, and whoever opens it meanwhile is answered
 * after that. */
#ifndef MOBULA_FS_PREFILL_H
#define MOBULA_FS_PREFILL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/store/store.h"
#include "fs/transport.h"

struct prefill;

/* -ENOMEM. */
MOB_MUST_CHECK errint_t prefill_open(struct prefill **out);
void prefill_close(struct prefill *prefill);

/* A look-up of the object's node is about to be answered, so the kernel had dropped its name, and
 * with it perhaps the content. Any thread. */
void prefill_looked_up(struct prefill *prefill, uint64_t node);

/* Before each answer to an open of an inline object, ready and counted as open. If the opener will
 * read from the kernel's `cache`, stores the content there, unless the node was not looked up since
 * that was last done; whatever fails, reads will ask. Any thread, with no lock held. Waits at most
 * for another thread that stores. */
void prefill_before_open(struct prefill *prefill, struct transport *transport, struct store *store,
                         uint64_t node, bool cache);

#endif
