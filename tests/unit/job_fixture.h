/* What tests that run jobs share: a launcher of their own, and an end of store and jobs. */
#ifndef MOBULA_TESTS_JOB_FIXTURE_H
#define MOBULA_TESTS_JOB_FIXTURE_H

#include "unit.h"

#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#include "core/job/job.h"
#include "core/job/launcher.h"
#include "core/store/store.h"

/* A child that launches jobs; *fd is our end of its socket. Both are the caller's to end. */
static inline pid_t fork_launcher(int *fd)
{
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    pid_t launcher = fork();
    if (launcher == 0) {
        close(ends[0]);
        _exit(launcher_run(ends[1]));
    }
    close(ends[1]);
    *fd = ends[0];
    return launcher;
}

static inline void close_jobs_and_store(struct jobs **jobs, struct store **store, bool kill_running)
{
    jobs_close(*jobs, kill_running);
    store_close(*store);
    *jobs = NULL;
    *store = NULL;
}

#endif
