/* Launcher: a small process that starts jobs' processes, waits for them and ends their trees.
 *
 * The keeper forks it once, so that processes have a parent that outlives a killed server, and so
 * that a fork copies a small address space. It serves one server at a time over a SOCK_SEQPACKET
 * pair whose server end the keeper keeps. What has ended is told again at every launcher_sync()
 * (launcher_client.h) until it is acknowledged.
 *
 * Nothing it does for one job waits for anything that another process may delay: programs, working
 * directories and input files are opened by the job's own process, as its user. */
#ifndef MOBULA_CORE_JOB_LAUNCHER_H
#define MOBULA_CORE_JOB_LAUNCHER_H

#include <stdint.h>
#include <sys/types.h>

#include "core/base/error.h"

/* Runs the launcher in this process, which must have one thread, until the other end of `fd` is
 * closed by everybody, SIGTERM arrives, or its parent dies; then ends every process it started
 * (SIGKILL) and returns an exit status. The process should hold no other end of `fd`'s pair.
 * Changes signal dispositions and the mask of the process. Takes `fd`. MOBULA_GRACE_MS in the
 * environment is the time between SIGTERM and SIGKILL (default 2000). */
int launcher_run(int fd);

#endif
