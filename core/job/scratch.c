/* Safe recursive removal. A subdirectory is first moved up beside its parent under a name of ours,
 * so that the tree becomes a list: no depth, no path that could be swapped under us. */
#include "core/job/scratch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/util.h"

#define NAME_BYTES 256
#define ROUNDS 100 /* against a process that keeps making files */

struct name_list {
    struct name_list *next;
    char name[NAME_BYTES];
};

static errint_t push(struct name_list **list, const char *name)
{
    struct name_list *item = malloc(sizeof *item);
    if (!item)
        return -ENOMEM;
    snprintf(item->name, sizeof item->name, "%s", name);
    item->next = *list;
    *list = item;
    return 0;
}

/* Opens a directory that its owner may have closed to everybody, and makes it ours alone. */
static int take_directory(int dir_fd, const char *name)
{
    cleanup_fd int path_fd = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC);
    if (path_fd < 0)
        return -errno;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", path_fd);
    /* The link leads to the directory that is open, whatever its name is now. */
    if (fchownat(path_fd, "", geteuid(), getegid(), AT_EMPTY_PATH) && errno != EPERM)
        return -errno;
    if (chmod(link, 0700) && errno != EPERM)
        return -errno;
    int fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* Moves a subdirectory up to `top_fd`, to be emptied later. */
static errint_t move_up(int dir_fd, const char *name, int top_fd, struct name_list **list)
{
    static atomic_ulong counter;
    char moved[NAME_BYTES];
    snprintf(moved, sizeof moved, ".removed-%d-%lu", (int)getpid(), atomic_fetch_add(&counter, 1));
    int fd = take_directory(dir_fd, name); /* moving one needs the right to write into it */
    if (fd >= 0)
        close(fd);
    if (renameat(dir_fd, name, top_fd, moved))
        return -errno;
    return push(list, moved);
}

/* Removes files of the directory, moves directories up. */
static errint_t flatten(int fd, int top_fd, struct name_list **list)
{
    DIR *directory = fdopendir(fd); /* takes fd */
    if (!directory) {
        close(fd);
        return -ENOMEM;
    }
    errint_t error = 0;
    struct dirent *entry;
    while (!error && (entry = readdir(directory))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (unlinkat(dirfd(directory), entry->d_name, 0) == 0 || errno == ENOENT)
            continue;
        if (unlinkat(dirfd(directory), entry->d_name, AT_REMOVEDIR) == 0)
            continue;
        if (errno == ENOTEMPTY || errno == EEXIST)
            error = move_up(dirfd(directory), entry->d_name, top_fd, list);
        else
            error = -errno;
        if (error == -ENOENT)
            error = 0;
    }
    closedir(directory);
    return error;
}

static errint_t remove_one(int dir_fd, const char *name, struct name_list **list)
{
    if (unlinkat(dir_fd, name, 0) == 0 || errno == ENOENT)
        return 0;
    for (int round = 0; round < ROUNDS; round++) {
        if (unlinkat(dir_fd, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
            return 0;
        if (errno != ENOTEMPTY && errno != EEXIST)
            return -errno;
        int fd = take_directory(dir_fd, name);
        if (fd < 0)
            return fd == -ENOENT ? 0 : fd;
        errint_t error = flatten(fd, dir_fd, list);
        if (error)
            return error;
    }
    return -ENOTEMPTY;
}

errint_t scratch_remove(int dir_fd, const char *name)
{
    struct name_list *list = NULL;
    errint_t error = remove_one(dir_fd, name, &list);
    while (list) {
        struct name_list *item = list;
        list = item->next;
        errint_t inner = remove_one(dir_fd, item->name, &list);
        error = error ? error : inner;
        free(item);
    }
    return error;
}

/* --- the thread --- */

struct cleaner_name {
    struct cleaner_name *next;
    int dir_fd;
    char name[NAME_BYTES];
};

static void *clean(void *argument)
{
    struct cleaner *cleaner = argument;
    pthread_mutex_lock(&cleaner->lock);
    for (;;) {
        while (!cleaner->first && !cleaner->stop)
            pthread_cond_wait(&cleaner->wake, &cleaner->lock);
        struct cleaner_name *item = cleaner->first;
        if (!item)
            break;
        cleaner->first = item->next;
        pthread_mutex_unlock(&cleaner->lock);
        errint_t error = scratch_remove(item->dir_fd, item->name);
        if (error)
            mob_log_warning("scratch directory %s: can't be removed: %s", item->name,
                            strerror(-error));
        free(item);
        pthread_mutex_lock(&cleaner->lock);
    }
    pthread_mutex_unlock(&cleaner->lock);
    return NULL;
}

errint_t cleaner_start(struct cleaner *cleaner)
{
    pthread_mutex_init(&cleaner->lock, NULL);
    pthread_cond_init(&cleaner->wake, NULL);
    int error = pthread_create(&cleaner->thread, NULL, clean, cleaner);
    cleaner->running = error == 0;
    return -error;
}

void cleaner_stop(struct cleaner *cleaner)
{
    if (!cleaner->running)
        return;
    pthread_mutex_lock(&cleaner->lock);
    cleaner->stop = true;
    pthread_cond_signal(&cleaner->wake);
    pthread_mutex_unlock(&cleaner->lock);
    pthread_join(cleaner->thread, NULL);
    pthread_mutex_destroy(&cleaner->lock);
    pthread_cond_destroy(&cleaner->wake);
    cleaner->running = false;
}

void cleaner_remove(struct cleaner *cleaner, int dir_fd, const char *name)
{
    if (unlinkat(dir_fd, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
        return;
    if (errno == ENOTDIR) {
        if (unlinkat(dir_fd, name, 0) == 0)
            return;
    }
    struct cleaner_name *item = malloc(sizeof *item);
    if (!item || !cleaner->running) { /* then it is swept at the next start */
        free(item);
        return;
    }
    item->dir_fd = dir_fd;
    snprintf(item->name, sizeof item->name, "%s", name);
    pthread_mutex_lock(&cleaner->lock);
    item->next = cleaner->first;
    cleaner->first = item;
    pthread_cond_signal(&cleaner->wake);
    pthread_mutex_unlock(&cleaner->lock);
}
