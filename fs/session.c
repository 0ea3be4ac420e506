/* Session memory: see session.h for what it is, session_layout.h for what is in it. */
#include "fs/session.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/util.h"
#include "fs/session_layout.h"

static size_t round_up_to_page(size_t bytes)
{
    return (bytes + SESSION_PAGE_BYTES - 1) & ~((size_t)SESSION_PAGE_BYTES - 1);
}

static size_t payload_area_offset(void)
{
    return round_up_to_page(sizeof(struct session));
}

static size_t handle_area_offset(void)
{
    return payload_area_offset() + SESSION_STRIDE_BYTES * SESSION_MAX_SLOTS;
}

errint_t session_create(size_t handle_bytes, struct session **out, struct mob_error *err)
{
    *out = NULL;
    size_t handle_offset = handle_area_offset();
    size_t total_bytes;
    if (handle_bytes > SIZE_MAX / 4 ||
        __builtin_add_overflow(handle_offset, round_up_to_page(handle_bytes), &total_bytes))
        return mob_error_set(err, -ENOMEM, "session memory of %zu bytes is too large",
                             handle_bytes);

    cleanup_fd int fd = memfd_create("mobula-session", MFD_CLOEXEC);
    if (fd < 0)
        return mob_error_set(err, -errno, "cannot make session memory (memfd_create): %s",
                             strerror(errno));
    if (ftruncate(fd, (off_t)total_bytes) < 0)
        return mob_error_set(err, -errno, "cannot size session memory (ftruncate): %s",
                             strerror(errno));
    /* Sparse: a page costs memory once it is touched. */
    struct session *session =
        mmap(NULL, total_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (session == MAP_FAILED)
        return mob_error_set(err, -errno, "cannot map %zu bytes of session memory: %s", total_bytes,
                             strerror(errno));
    session->total_bytes = total_bytes;
    session->handle_offset = handle_offset;
    session->handle_bytes = handle_bytes;
    session->memfd = steal_fd(&fd);
    *out = session;
    return 0;
}

void session_destroy(struct session *session)
{
    if (!session)
        return;
    close(session->memfd);
    munmap(session, session->total_bytes);
}

void *session_handle_area(struct session *session, size_t *bytes)
{
    if (bytes)
        *bytes = session->handle_bytes;
    return (char *)session + session->handle_offset;
}

unsigned session_generation(const struct session *session)
{
    return atomic_load(&session->generation);
}

void session_next_generation(struct session *session)
{
    atomic_fetch_add(&session->generation, 1);
}

bool session_is_settled(const struct session *session)
{
    return atomic_load(&session->settled);
}

void session_set_settled(struct session *session)
{
    atomic_store(&session->settled, true);
}

char *session_slot_payload(struct session *session, unsigned slot)
{
    return (char *)session + payload_area_offset() + SESSION_STRIDE_BYTES * slot +
           SESSION_PAGE_BYTES;
}
