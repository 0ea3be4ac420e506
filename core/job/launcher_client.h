/* The server's side of the launcher's socket. Sends may block until the launcher has read what is
 * before them, which it does without waiting for anybody. One thread at a time. */
#ifndef MOBULA_CORE_JOB_LAUNCHER_CLIENT_H
#define MOBULA_CORE_JOB_LAUNCHER_CLIENT_H

#include <stdint.h>

#include "core/base/error.h"
#include "core/job/launch_protocol.h"

/* Called for each run that the launcher knows: LAUNCHED_RUNNING or LAUNCHED_ENDED. */
typedef void launcher_known(void *argument, const struct launch_report *report);

/* Throws away what the launcher told a server before, and asks for all it knows. -ETIMEDOUT after
 * ten seconds of silence, -EPIPE if it is gone. */
MOB_MUST_CHECK errint_t launcher_sync(int fd, launcher_known *known, void *argument,
                                      struct mob_error *err);
/* Starts a run. The descriptors stay the caller's. -E2BIG, -ENOMEM, -EPIPE, -EMFILE. */
MOB_MUST_CHECK errint_t launcher_start(int fd, uint64_t number, uint32_t attempt,
                                       uint64_t timeout_ns, const struct launch_request *request,
                                       int stdout_fd, int stderr_fd);
MOB_MUST_CHECK errint_t launcher_stop(int fd, uint64_t number, uint32_t attempt,
                                      enum launch_stop why);
MOB_MUST_CHECK errint_t launcher_signal(int fd, uint64_t number, uint32_t attempt, int signal);
MOB_MUST_CHECK errint_t launcher_acknowledge(int fd, uint64_t number, uint32_t attempt);

/* The next report, without waiting: -EAGAIN, -EPIPE. What is not well-formed is skipped. */
MOB_MUST_CHECK errint_t launcher_next(int fd, struct launch_report *report);

#endif
