/* Keeper: holds the FUSE connection and the session memory, and starts the server again when it
 * dies. It does nothing else, so that it has no reason to die itself. */
#ifndef MOBULA_TOOLS_KEEPER_H
#define MOBULA_TOOLS_KEEPER_H

#include "tools/settings.h"

/* Mounts, starts launcher and server, and keeps them until SIGTERM, SIGINT or an unmount; then
 * takes all of it down. Tells settings->ready_fd how it went. Returns an exit status. */
int keeper_run(struct settings *settings, int lock_fd);

/* One line for who started the daemon: "ok", or "error " and a sentence. Closes the descriptor. */
void keeper_tell(struct settings *settings, const char *verdict, const char *sentence);

#endif
