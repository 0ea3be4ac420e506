/* Who is still writing into staging/, and what could not be committed, for `mobula down`. */
#ifndef MOBULA_TOOLS_CMD_DOWN_WRITERS_H
#define MOBULA_TOOLS_CMD_DOWN_WRITERS_H

#include <stdbool.h>
#include <stdint.h>

/* How many files are being written, as the node says; 0 if it can't be read. */
uint64_t down_count_writers(const char *mount_path, const char *node);

/* Prints on standard error, a line each, the processes that have a file of staging/ open for
 * writing; or, where that can't be seen, the files. */
void down_print_writers(const char *mount_path);

/* How many files of staging/ and run/ are closed but could not be committed. With `print`, each is
 * printed on standard error, with the reason. Looks through all names. */
uint64_t down_count_stuck(const char *mount_path, bool print);

#endif
