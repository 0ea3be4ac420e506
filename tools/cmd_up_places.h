/* mobula up: the places that a daemon keeps things in, before it is started.
 *
 * Each returns an exit status, 0 if all is well, and has then printed why it is not; a wrong call
 * ends the process with EX_USAGE. They block for the disk. `mount_path` is absolute and without
 * links. */
#ifndef MOBULA_TOOLS_CMD_UP_PLACES_H
#define MOBULA_TOOLS_CMD_UP_PLACES_H

#include "tools/cmd_up_options.h"

/* Warns if --memory is more than the machine has. An ordinary user's objects lie in /dev/shm, which
 * containers keep small: EX_CONFIG if it is more than that. */
int up_check_memory(const struct cli *cli, const struct up_options *options);

/* Makes the state directory, and names it by its path without links. EX_CANTCREAT, EX_NOPERM. */
int up_make_state(const struct cli *cli, struct up_options *options, const char *mount_path);

/* Names each directory of --spill by its path without links; it is mobulad's to make. One in memory
 * is warned of. After up_make_state(). EX_CANTCREAT, EX_NOPERM. */
int up_check_spills(const struct cli *cli, struct up_options *options, const char *mount_path);

/* Names each directory of --forget-spill in the same way. As cli_status(). */
int up_check_forgets(const struct cli *cli, struct up_options *options);

#endif
