/* Session memory: what must outlive a server, so that its successor can go on where it died.
 *
 * The keeper makes it once (a memfd, mapped shared) before it forks the first server; servers are
 * forked without exec, so that every one of them sees it at the same address, which matters because
 * the kernel holds addresses of the ring's buffers. It has the saved INIT request, the state of
 * every ring entry, and an area that belongs to fs/handles.c.
 * Everything in it may have been cut off at any instruction by SIGKILL: writers order their stores
 * so that a reader can tell whole from half. */
#ifndef MOBULA_FS_SESSION_H
#define MOBULA_FS_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"

struct session;

/* Makes the session memory with `handle_bytes` for fs/handles.c (zeroed, page-aligned, sparse).
 * Keeper only. -ENOMEM or the errno of memfd_create(2) or mmap(2). */
MOB_MUST_CHECK errint_t session_create(size_t handle_bytes, struct session **out,
                                       struct mob_error *err);
void session_destroy(struct session *session);

/* The area for fs/handles.c. */
void *session_handle_area(struct session *session, size_t *bytes);

/* How many servers have begun before this one: 0 in the first. The keeper counts before each fork.
 */
unsigned session_generation(const struct session *session);
void session_next_generation(struct session *session);

/* Has a server of this mount seen to what the mount before it left? Until then there were no
 * requests: each one that is killed while it starts leaves that to the next. */
bool session_is_settled(const struct session *session);
void session_set_settled(struct session *session);

#endif
