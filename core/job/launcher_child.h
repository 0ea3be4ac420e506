/* What a job's process does between fork and exec. */
#ifndef MOBULA_CORE_JOB_LAUNCHER_CHILD_H
#define MOBULA_CORE_JOB_LAUNCHER_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

#include "core/job/launch_protocol.h"

/* In memory shared by launcher and child, so that a failure before exec costs no pipe. */
struct launch_slot {
    uint32_t stage, stage_errno;
};

struct launcher_child {
    const struct launch_request *request;
    int stdout_fd, stderr_fd;
    struct launch_slot *slot;
    pid_t launcher;
    bool reset_oom_score, change_user;
};

/* Becomes the job's program, or says why not in the slot and exits with 127 or 126. May run in a
 * vfork(2) child: it changes no memory but its own frames and the slot, allocates nothing and takes
 * no lock. */
_Noreturn void launcher_child(const struct launcher_child *child);

#endif
