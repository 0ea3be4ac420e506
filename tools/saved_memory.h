/* What is kept of memory on disk between an orderly end and the next start, where objects have no
 * spill directory to go to: STATE/saved has a copy of each data file, and behind its bytes their
 * number and checksum.
 *
 * Any thread; both block for the disk. */
#ifndef MOBULA_TOOLS_SAVED_MEMORY_H
#define MOBULA_TOOLS_SAVED_MEMORY_H

#include <stdbool.h>

#include "core/base/error.h"

/* Before the name of a file that is not what was saved. */
#define SAVED_DAMAGED_PREFIX "damaged-"

/* Copies every regular file of `data_dir` that has bytes to `saved_dir`, which is made. Nothing but
 * what was damaged before is left there after an error: -ENOSPC, -ENOMEM, or what else the
 * filesystem says. */
MOB_MUST_CHECK errint_t saved_memory_keep(const char *data_dir, const char *saved_dir);

/* Whether `data_dir` has such files. */
bool saved_memory_is_any(const char *data_dir);

/* Moves them back, and removes `saved_dir` when it is empty; 0 if there is none. A file that is
 * damaged stays under another name, and that is logged. -ENOSPC: they don't fit; what was moved
 * is in `data_dir`, the rest in `saved_dir`. */
MOB_MUST_CHECK errint_t saved_memory_restore(const char *saved_dir, const char *data_dir);

/* Removes a directory and the files in it. */
void saved_memory_remove(const char *path);

#endif
