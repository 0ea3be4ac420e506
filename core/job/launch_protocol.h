/* What server and launcher say to each other, a SOCK_SEQPACKET packet a message. Both are of one
 * build and one machine, yet each side checks what it reads: a server is fed by users. */
#ifndef MOBULA_CORE_JOB_LAUNCH_PROTOCOL_H
#define MOBULA_CORE_JOB_LAUNCH_PROTOCOL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/base/error.h"

#define LAUNCH_MAGIC 0x6d6f624cu
/* A request up to this size travels in the packet, a larger one in a memfd. */
#define LAUNCH_INLINE_LIMIT ((size_t)32 << 10)
#define LAUNCH_BODY_LIMIT ((size_t)64 << 20)
#define LAUNCH_GROUPS_LIMIT 65536u

enum launch_command_type {
    LAUNCH_RUN = 1, /* + body; descriptors: stdout, stderr, and the memfd of a large body */
    LAUNCH_STOP,    /* value: enum launch_stop */
    LAUNCH_SIGNAL,  /* value: the signal, to the whole tree */
    LAUNCH_SYNC,    /* number: a cookie that comes back in LAUNCHED_SYNC_BEGIN */
    LAUNCH_ACK,     /* the end of this run is recorded: forget it */
};

/* Why a run was stopped. */
enum launch_stop { LAUNCH_STOP_NONE, LAUNCH_STOP_CANCEL, LAUNCH_STOP_TIMEOUT, LAUNCH_STOP_DOWN };

struct launch_command {
    uint32_t magic, type;
    uint64_t number; /* of the job */
    uint32_t attempt, value;
    uint64_t timeout_ns; /* LAUNCH_RUN: 0 = none */
    uint32_t body_bytes; /* LAUNCH_RUN */
    uint32_t body_in_fd;
};

enum launch_report_type {
    LAUNCHED_SYNC_BEGIN = 1, /* number: the cookie; what was sent before is stale */
    LAUNCHED_RUNNING,        /* only between SYNC_BEGIN and SYNC_END */
    LAUNCHED_ENDED,
    LAUNCHED_SYNC_END,
};

/* Where a run failed before its program began. */
enum launch_stage {
    LAUNCH_STAGE_NONE,
    LAUNCH_STAGE_FORK,
    LAUNCH_STAGE_USER, /* setgroups, setresgid, setresuid */
    LAUNCH_STAGE_STDIN,
    LAUNCH_STAGE_DIRECTORY,
    LAUNCH_STAGE_NOT_FOUND,   /* no such program */
    LAUNCH_STAGE_INTERPRETER, /* the program is there, what its first line or its header names isn't
                               */
    LAUNCH_STAGE_EXEC,
};

struct launch_report {
    uint32_t magic, type;
    uint64_t number;
    uint32_t attempt, stop; /* enum launch_stop */
    uint32_t stage, stage_errno;
    int32_t pid, status;           /* as of wait(2) */
    uint64_t started_ns, ended_ns; /* CLOCK_REALTIME */
    uint64_t wall_ns, user_us, system_us, max_resident_bytes;
};

/* What to run. Strings are borrowed by launch_request_encode(), and point into the body after
 * launch_request_decode(). */
struct launch_request {
    uint32_t uid, gid, umask;
    const uint32_t *groups;
    uint32_t group_count;
    bool plain_paths; /* program and directory are on plain local filesystems, so opening them can't
                         hang */
    const char *job;  /* the ID, as in MOBULA_JOB of `env` */
    const char *directory;
    const char *stdin_path; /* opened by the job's process; "" = none */
    const char *stdin_text; /* NULL = none */
    size_t stdin_bytes;
    char *const *arguments; /* terminated by NULL */
    char *const *environment;
};

/* The request as a flat body: a malloc'd buffer. -ENOMEM, -E2BIG. */
MOB_MUST_CHECK errint_t launch_request_encode(const struct launch_request *request, uint8_t **body,
                                              size_t *bytes);
/* Checks and reads a body. The lists are malloc'd (launch_request_free()), the strings stay in the
 * body. -EBADMSG, -ENOMEM. */
MOB_MUST_CHECK errint_t launch_request_decode(const uint8_t *body, size_t bytes,
                                              struct launch_request *request);
void launch_request_free(struct launch_request *request);

#endif
