/* Who still writes to a data file behind the store's back, and being told when nobody does.
 *
 * inotify tells that a writer has closed, but just before the kernel stops counting it; and a
 * mapping outlives its descriptor. What is true is the lease alone, so after each event, and once
 * in a while without one, the lease is asked again. */
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>

#include "core/store/store_internal.h"

static const uint64_t PAUSE_FIRST_NS = 1000000, PAUSE_LAST_NS = 1000000000;

enum writers { WRITERS_NONE, WRITERS_SOME, WRITERS_FILE_GONE };

static enum writers ask(struct store *store, uint64_t number)
{
    struct staged *staged = staged_get(store, number);
    if (!staged)
        return WRITERS_FILE_GONE;
    bool writers = staged_is_direct(staged) && data_has_writers(staged->data.fd);
    staged_put(store, staged);
    return writers ? WRITERS_SOME : WRITERS_NONE;
}

int staged_has_writers(struct store *store, uint64_t number)
{
    enum writers writers = ask(store, number);
    objects_settle(store);
    return writers == WRITERS_SOME;
}

static void wake(struct watcher *watcher)
{
    uint64_t one = 1;
    if (write(watcher->event_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        mob_log_error("store: eventfd: %s", strerror(errno));
}

/* Takes a watch that is due out of the list. Locked. */
static struct watch *take_due(struct watcher *watcher, uint64_t now_ns)
{
    for (struct watch **link = &watcher->watches; *link; link = &(*link)->next) {
        struct watch *watch = *link;
        if (watch->due_ns > now_ns)
            continue;
        *link = watch->next;
        watch->next = NULL;
        return watch;
    }
    return NULL;
}

/* Fails harmlessly if the file is gone: the kernel has removed the watch then. */
static void drop_watch(struct watcher *watcher, struct watch *watch)
{
    if (watch->descriptor >= 0)
        inotify_rm_watch(watcher->inotify_fd, watch->descriptor);
    free(watch);
}

static void put_off(struct watcher *watcher, struct watch *watch)
{
    watch->pause_ns = watch->pause_ns * 2 < PAUSE_LAST_NS ? watch->pause_ns * 2 : PAUSE_LAST_NS;
    watch->due_ns = mob_monotonic_ns() + watch->pause_ns;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&watcher->lock);
    for (const struct watch *other = watcher->watches; other; other = other->next) {
        if (other->number != watch->number)
            continue;
        free(watch); /* replaced meanwhile; inotify has one descriptor for both */
        return;
    }
    watch->next = watcher->watches;
    watcher->watches = watch;
}

static void look_again(struct store *store, struct watch *watch)
{
    enum writers writers = ask(store, watch->number);
    if (writers == WRITERS_SOME) {
        put_off(&store->watcher, watch);
        return;
    }
    struct watch done = *watch;
    drop_watch(&store->watcher, watch); /* before the callback, which may ask for another */
    if (writers == WRITERS_NONE)
        done.callback(done.argument, done.number);
}

static int pause_ms(struct watcher *watcher)
{
    uint64_t now_ns = mob_monotonic_ns(), next_ns = UINT64_MAX;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&watcher->lock);
    for (const struct watch *watch = watcher->watches; watch; watch = watch->next)
        if (watch->due_ns < next_ns)
            next_ns = watch->due_ns;
    if (next_ns == UINT64_MAX)
        return -1;
    return next_ns <= now_ns ? 0 : (int)((next_ns - now_ns) / 1000000 + 1);
}

static void read_events(struct watcher *watcher)
{
    union {
        struct inotify_event event;
        char bytes[8192];
    } buffer;
    ssize_t got;
    while ((got = read(watcher->inotify_fd, buffer.bytes, sizeof buffer.bytes)) > 0) {
        cleanup_lock pthread_mutex_t *lock = mob_lock(&watcher->lock);
        for (ssize_t at = 0; at < got;) {
            const struct inotify_event *event = (const void *)(buffer.bytes + at);
            for (struct watch *watch = watcher->watches; watch; watch = watch->next) {
                if (watch->descriptor != event->wd && !(event->mask & IN_Q_OVERFLOW))
                    continue;
                watch->due_ns = 0;
                watch->pause_ns = PAUSE_FIRST_NS;
            }
            at += (ssize_t)(sizeof *event + event->len);
        }
    }
    uint64_t count;
    while (read(watcher->event_fd, &count, sizeof count) > 0)
        continue;
}

static void *run(void *argument)
{
    struct store *store = argument;
    struct watcher *watcher = &store->watcher;
    struct pollfd fds[2] = {{.fd = watcher->inotify_fd, .events = POLLIN},
                            {.fd = watcher->event_fd, .events = POLLIN}};
    for (;;) {
        poll(fds, 2, pause_ms(watcher));
        read_events(watcher);
        pthread_mutex_lock(&watcher->lock);
        bool stop = watcher->stop;
        struct watch *watch = stop ? NULL : take_due(watcher, mob_monotonic_ns());
        pthread_mutex_unlock(&watcher->lock);
        if (stop)
            return NULL;
        if (watch)
            look_again(store, watch);
        objects_settle(store);
    }
}

/* Locked. */
static errint_t start(struct store *store)
{
    struct watcher *watcher = &store->watcher;
    if (watcher->running)
        return 0;
    if (watcher->inotify_fd < 0)
        watcher->inotify_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (watcher->event_fd < 0)
        watcher->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (watcher->inotify_fd < 0 || watcher->event_fd < 0)
        return -errno;
    int code = pthread_create(&watcher->thread, NULL, run, store);
    if (code)
        return -code;
    watcher->running = true;
    return 0;
}

static int watch_file(struct store *store, const struct data_file *file)
{
    char path[64], name[DATA_NAME_BYTES];
    int folder = file->dir == DISK_NO_DIR ? store->data_fd : store->disk.dirs[file->dir].objects_fd;
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", folder, data_name(file->file, name));
    return inotify_add_watch(store->watcher.inotify_fd, path, IN_CLOSE_WRITE);
}

errint_t staged_when_unwritten(struct store *store, uint64_t number, staged_unwritten *callback,
                               void *argument)
{
    struct watcher *watcher = &store->watcher;
    struct staged *staged = staged_get(store, number);
    struct watch *watch = calloc(1, sizeof *watch);
    errint_t error = !staged ? -ENOENT : !watch ? -ENOMEM : 0;
    if (!error) {
        cleanup_lock pthread_mutex_t *lock = mob_lock(&watcher->lock);
        error = start(store);
        if (!error) {
            /* Without a watch (their number is limited) the pauses alone do. */
            int descriptor = watch_file(store, &staged->data);
            *watch = (struct watch){.descriptor = descriptor,
                                    .number = number,
                                    .callback = callback,
                                    .argument = argument,
                                    .pause_ns = PAUSE_FIRST_NS};
            struct watch **link = &watcher->watches;
            while (*link && (*link)->number != number)
                link = &(*link)->next;
            struct watch *replaced = *link;
            if (replaced)
                *link = replaced->next;
            free(replaced); /* the same file has the same descriptor: it stays */
            watch->next = watcher->watches;
            watcher->watches = steal_pointer(&watch);
            wake(watcher); /* looks at once: the last writer may have gone before the watch was
                              there */
        }
    }
    free(watch);
    if (staged)
        staged_put(store, staged);
    objects_settle(store);
    return error;
}

void watcher_forget(struct store *store, uint64_t number)
{
    struct watcher *watcher = &store->watcher;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&watcher->lock);
    for (struct watch **link = &watcher->watches; *link; link = &(*link)->next) {
        struct watch *watch = *link;
        if (watch->number != number)
            continue;
        *link = watch->next;
        drop_watch(watcher, watch);
        return;
    }
}

void watcher_close(struct store *store)
{
    struct watcher *watcher = &store->watcher;
    pthread_mutex_lock(&watcher->lock);
    bool running = watcher->running;
    watcher->stop = true;
    if (running)
        wake(watcher);
    pthread_mutex_unlock(&watcher->lock);
    if (running)
        pthread_join(watcher->thread, NULL);
    while (watcher->watches) {
        struct watch *next = watcher->watches->next;
        free(watcher->watches);
        watcher->watches = next;
    }
    mob_cleanup_fd(&watcher->inotify_fd);
    mob_cleanup_fd(&watcher->event_fd);
    watcher->running = false;
}
