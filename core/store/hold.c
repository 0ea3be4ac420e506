/* Holding the writers of a file by a write of our own that waits for a page. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/store/hold.h"

enum slot_state {
    SLOT_UNMADE,
    SLOT_FREE,      /* its thread sleeps; the page is out of reach and not watched */
    SLOT_TAKEN,     /* by hold_begin() or the holder */
    SLOT_ABANDONED, /* timed out: free as soon as its write has failed */
};

struct hold_token {
    struct hold *hold;
    pthread_t thread;
    int fault_fd, done_fd; /* userfaultfd; eventfd: the write has come back */
    char *page;

    /* Under hold->lock. */
    enum slot_state state;
    int fd;         /* what to write to, -1 = nothing */
    off_t offset;   /* < 0: where there is data */
    ssize_t result; /* of the write: -errno */
};

struct hold {
    pthread_mutex_t lock;
    pthread_cond_t work; /* a slot's fd was set, or `closing` */
    bool closing;
    size_t limit, page_bytes;
    struct hold_token slots[];
};

/* --- the watched page --- */

static struct uffdio_range page_range(const struct hold_token *slot)
{
    return (struct uffdio_range){(uintptr_t)slot->page, slot->hold->page_bytes};
}

/* From now on who touches the page waits. */
static errint_t watch(struct hold_token *slot)
{
    struct uffdio_register area = {.range = page_range(slot), .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (mprotect(slot->page, slot->hold->page_bytes, PROT_READ) < 0)
        return -errno;
    return ioctl(slot->fault_fd, UFFDIO_REGISTER, &area) < 0 ? -errno : 0;
}

/* From now on who touches the page fails, also who waits for it. First out of reach, then
 * unwatched: the other way round the kernel would find a page of zeros, and the write would be
 * made. */
static void unwatch(struct hold_token *slot)
{
    struct uffdio_range range = page_range(slot);
    struct uffd_msg message;
    if (mprotect(slot->page, slot->hold->page_bytes, PROT_NONE) < 0)
        mob_log_error("hold: mprotect: %s", strerror(errno));
    if (ioctl(slot->fault_fd, UFFDIO_UNREGISTER, &range) < 0)
        mob_log_error("hold: unregister: %s", strerror(errno));
    ioctl(slot->fault_fd, UFFDIO_WAKE, &range);
    while (read(slot->fault_fd, &message, sizeof message) > 0)
        ;
}

static errint_t explain(errint_t error, struct mob_error *err)
{
    if (error == -EPERM || error == -EACCES)
        return mob_error_set(err, -EPERM,
                             "writers can't be held: userfaultfd is not permitted here (it takes "
                             "root, or vm.unprivileged_userfaultfd=1, and a seccomp profile that "
                             "lets it pass)");
    if (error == -ENOSYS || error == -EINVAL)
        return mob_error_set(err, -EOPNOTSUPP,
                             "writers can't be held: this kernel has no userfaultfd");
    return mob_error_set(err, error, "writers can't be held: %s", strerror(-error));
}

static int open_fault_fd(void)
{
    struct uffdio_api api = {.api = UFFD_API};
    cleanup_fd int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
        return -errno;
    return steal_fd(&fd);
}

/* --- the thread of a slot --- */

/* Looking for data takes the file's lock, too, so it is done here. It is written where there is
 * data already: a page that was not there could be made by the attempt. */
static ssize_t attempt(int fd, const char *page, off_t offset)
{
    if (offset < 0)
        offset = lseek(fd, 0, SEEK_DATA);
    if (offset < 0)
        return errno == ENXIO ? -ENODATA : -errno;
    ssize_t result = pwrite(fd, page, 1, offset);
    return result < 0 ? -errno : result;
}

static void *write_held(void *argument)
{
    struct hold_token *slot = argument;
    struct hold *hold = slot->hold;
    pthread_mutex_lock(&hold->lock);
    for (;;) {
        while (slot->fd < 0 && !hold->closing)
            pthread_cond_wait(&hold->work, &hold->lock);
        if (slot->fd < 0)
            break;
        int fd = slot->fd;
        off_t offset = slot->offset;
        pthread_mutex_unlock(&hold->lock);
        ssize_t result = attempt(fd, slot->page, offset);
        close(fd);
        pthread_mutex_lock(&hold->lock);
        slot->result = result;
        slot->fd = -1;
        if (slot->state == SLOT_ABANDONED)
            slot->state = SLOT_FREE;
        else if (write(slot->done_fd, &(uint64_t){1}, 8) < 0)
            mob_log_error("hold: eventfd: %s", strerror(errno));
    }
    pthread_mutex_unlock(&hold->lock);
    return NULL;
}

static void slot_clear(struct hold_token *slot)
{
    mob_cleanup_fd(&slot->fault_fd);
    mob_cleanup_fd(&slot->done_fd);
    if (slot->page)
        munmap(slot->page, slot->hold->page_bytes);
    slot->page = NULL;
}

static errint_t slot_make(struct hold_token *slot)
{
    slot->fault_fd = open_fault_fd();
    if (slot->fault_fd < 0)
        return slot->fault_fd;
    slot->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (slot->done_fd < 0)
        return -errno;
    void *page = mmap(NULL, slot->hold->page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return -errno;
    slot->page = page;
    return -pthread_create(&slot->thread, NULL, write_held, slot);
}

/* The lock is held. */
static errint_t slot_take(struct hold *hold, struct hold_token **taken)
{
    for (size_t i = 0; i < hold->limit; i++) {
        struct hold_token *slot = &hold->slots[i];
        if (slot->state != SLOT_FREE && slot->state != SLOT_UNMADE)
            continue;
        errint_t error = slot->state == SLOT_UNMADE ? slot_make(slot) : 0;
        if (error) {
            slot_clear(slot);
            return error;
        }
        slot->state = SLOT_TAKEN;
        *taken = slot;
        return 0;
    }
    return -EBUSY;
}

/* --- opening --- */

errint_t hold_open(struct hold **out, size_t limit, struct mob_error *err)
{
    int fault_fd = open_fault_fd();
    if (fault_fd < 0)
        return explain(fault_fd, err);
    mob_cleanup_fd(&fault_fd);
    struct hold *hold = calloc(1, sizeof *hold + limit * sizeof hold->slots[0]);
    if (!hold)
        return explain(-ENOMEM, err);
    pthread_mutex_init(&hold->lock, NULL);
    pthread_cond_init(&hold->work, NULL);
    hold->limit = limit;
    hold->page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < limit; i++) {
        struct hold_token *slot = &hold->slots[i];
        *slot = (struct hold_token){.hold = hold, .fault_fd = -1, .done_fd = -1, .fd = -1};
    }
    *out = hold;
    return 0;
}

void hold_close(struct hold *hold)
{
    if (!hold)
        return;
    pthread_mutex_lock(&hold->lock);
    hold->closing = true;
    pthread_cond_broadcast(&hold->work);
    pthread_mutex_unlock(&hold->lock);
    for (size_t i = 0; i < hold->limit; i++) {
        struct hold_token *slot = &hold->slots[i];
        if (!slot->page)
            continue; /* never made */
        pthread_join(slot->thread, NULL);
        slot_clear(slot);
    }
    pthread_cond_destroy(&hold->work);
    pthread_mutex_destroy(&hold->lock);
    free(hold);
}

/* --- holding --- */

static void give_back(struct hold_token *slot)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&slot->hold->lock);
    slot->state = SLOT_FREE;
}

/* Sets the thread going. */
static errint_t start(struct hold_token *slot, int fd, uint64_t offset)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    cleanup_fd int opened = open(path, O_WRONLY | O_CLOEXEC);
    if (opened < 0)
        return -errno;
    errint_t error = watch(slot);
    if (error) {
        unwatch(slot);
        return error;
    }
    cleanup_lock pthread_mutex_t *lock = mob_lock(&slot->hold->lock);
    slot->fd = steal_fd(&opened);
    slot->offset = (off_t)offset;
    pthread_cond_broadcast(&slot->hold->work);
    return 0;
}

/* 1: the write waits for the page, so the file's lock is held. 0: it came back. */
static errint_t await(const struct hold_token *slot, uint64_t timeout_ns)
{
    uint64_t now = mob_monotonic_ns();
    uint64_t end = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
    struct pollfd ready[2] = {{.fd = slot->fault_fd, .events = POLLIN},
                              {.fd = slot->done_fd, .events = POLLIN}};
    for (;;) {
        now = mob_monotonic_ns();
        uint64_t left = now < end ? end - now : 0;
        struct timespec wait = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
        int count = ppoll(ready, 2, left > INT64_MAX ? NULL : &wait, NULL);
        if (count < 0 && errno != EINTR)
            return -errno;
        if (count > 0)
            return ready[0].revents ? 1 : 0;
        if (count == 0)
            return -ETIMEDOUT;
    }
}

/* Waits until the write came back, and gives its result. The page is out of reach. */
static ssize_t finish(struct hold_token *slot)
{
    struct pollfd ready = {.fd = slot->done_fd, .events = POLLIN};
    uint64_t count;
    while (read(slot->done_fd, &count, sizeof count) < 0)
        poll(&ready, 1, -1);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&slot->hold->lock);
    slot->state = SLOT_FREE;
    return slot->result;
}

/* The write still waits for the file's lock, which can't be stopped; when it gets it, it fails at
 * once. If it just came back, there is nothing to wait for. */
static void abandon(struct hold_token *slot)
{
    unwatch(slot);
    {
        cleanup_lock pthread_mutex_t *lock = mob_lock(&slot->hold->lock);
        if (slot->fd >= 0) {
            slot->state = SLOT_ABANDONED;
            return;
        }
    }
    finish(slot);
}

errint_t hold_begin(struct hold *hold, int fd, uint64_t offset, uint64_t timeout_ns,
                    struct hold_token **token)
{
    struct hold_token *slot;
    pthread_mutex_lock(&hold->lock);
    errint_t error = slot_take(hold, &slot);
    pthread_mutex_unlock(&hold->lock);
    if (error)
        return error;
    error = start(slot, fd, offset);
    if (error) {
        give_back(slot);
        return error;
    }
    error = await(slot, timeout_ns);
    if (error == 1) {
        *token = slot;
        return 0;
    }
    if (error < 0) {
        abandon(slot);
        return error;
    }
    unwatch(slot);
    ssize_t result = finish(slot);
    return result < 0 ? (errint_t)result : -EIO;
}

void hold_end(struct hold_token *token)
{
    unwatch(token);
    ssize_t result = finish(token);
    if (result != -EFAULT)
        mob_log_error("hold: the write that held a file came back with %zd", result);
}
