/* Known nodes: what the kernel may have in its cache, so that what it never saw costs no
 * notification. */
#ifndef MOBULA_FS_KNOWN_H
#define MOBULA_FS_KNOWN_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"

struct known;

/* `everything`: begin as if all were known, as a successor must. -ENOMEM. */
MOB_MUST_CHECK errint_t known_open(bool everything, struct known **out);
void known_close(struct known *known);

/* The kernel is about to be told about the node. Any thread. */
void known_mark(struct known *known, uint64_t node);
/* False only if the kernel was certainly never told. */
bool known_may_have(const struct known *known, uint64_t node);
/* The same, and takes the mark away, for others of the same hash as well. True for one caller. */
bool known_take(struct known *known, uint64_t node);

#endif
