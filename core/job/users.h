/* Users as jobs need them. */
#ifndef MOBULA_CORE_JOB_USERS_H
#define MOBULA_CORE_JOB_USERS_H

#include "core/job/job_internal.h"

/* *out is the cache's, good until the next call. -ENOMEM, -E2BIG. Blocks for the user database. */
MOB_MUST_CHECK errint_t user_find(struct jobs *jobs, uid_t uid, gid_t gid, const struct user **out);

#endif
