/* Server: the process that serves a mount; the keeper starts it again when it dies. */
#ifndef MOBULA_TOOLS_SERVER_H
#define MOBULA_TOOLS_SERVER_H

#include "fs/session.h"
#include "tools/settings.h"

struct growing_pipes;

struct server_options {
    const struct settings *settings;
    struct session *session;
    int connection_fd; /* the FUSE connection */
    int launcher_fd;
    struct growing_pipes *pipes; /* the keeper's, or NULL */
    int keeper_pid;
    bool distrust_meta; /* servers before it have crashed: make the metadata anew */
    int ready_fd; /* gets "ok\n" or "error SENTENCE\n"; closed */
};

/* Serves until the mount goes or SIGTERM comes. Returns an exit status: 0 = an orderly end. */
int server_run(const struct server_options *options);

#endif
