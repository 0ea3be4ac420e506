/* The spill directories. */
#include "core/store/disk.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/store/store_internal.h"

#define RESERVE_LEAST (UINT64_C(64) << 20)
#define RESERVE_MOST (UINT64_C(4) << 30)

/* --- what a directory is --- */

/* -ENOENT: it has no identity. */
static errint_t read_identity(struct disk_dir *dir, const char *key, struct mob_error *err)
{
    cleanup_free char *text = NULL;
    size_t bytes;
    struct disk_identity identity;
    errint_t error =
        mob_read_file(dir->fd, DISK_IDENTITY_NAME, DISK_IDENTITY_TEXT_BYTES, &text, &bytes);
    if (error == -ENOENT)
        return error;
    if (error && error != -EFBIG)
        return mob_error_set(err, error, "%s/%s: %s", dir->path, DISK_IDENTITY_NAME,
                             strerror(-error));
    if (error || disk_identity_parse(text, bytes, &identity))
        return mob_error_set(err, -EINVAL, "%s was made by another version of mobula: see %s/%s",
                             dir->path, dir->path, DISK_IDENTITY_NAME);
    if (memcmp(identity.owner, dir->identity.owner, sizeof identity.owner) != 0)
        return mob_error_set(err, -EINVAL, "%s belongs to another node: %s/%s names its owner",
                             dir->path, dir->path, DISK_IDENTITY_NAME);
    if (*identity.key && !*key)
        return mob_error_set(err, -ENOKEY, "%s is encrypted: give its key with --spill-key",
                             dir->path);
    if (*identity.key && strcmp(identity.key, key) != 0)
        return mob_error_set(err, -EKEYREJECTED,
                             "%s was encrypted with another key: %s/%s has the key's name, %s, and "
                             "the one given has the name %s",
                             dir->path, dir->path, DISK_IDENTITY_NAME, identity.key, key);
    dir->identity = identity;
    return 0;
}

/* On disk before anything is in the directory, or the store knows it. */
static errint_t write_identity(const struct disk_dir *dir)
{
    char text[DISK_IDENTITY_TEXT_BYTES];
    disk_identity_format(&dir->identity, text);
    errint_t error = mob_write_file(dir->fd, DISK_IDENTITY_NAME, text, strlen(text), 0600);
    if (error)
        return error;
    cleanup_fd int fd = openat(dir->fd, DISK_IDENTITY_NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    return fd < 0 || fsync(fd) < 0 || fsync(dir->fd) < 0 ? -errno : 0;
}

/* What can be opened of it. */
static errint_t open_objects(struct disk_dir *dir, struct mob_error *err)
{
    struct stat info;
    dir->objects_fd = openat(dir->fd, "objects", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (dir->objects_fd < 0 && errno == ENOENT)
        return 0;
    if (dir->objects_fd < 0 || fstat(dir->objects_fd, &info) < 0)
        return mob_error_set(err, -errno, "%s/objects: %s", dir->path, strerror(errno));
    dir->device = info.st_dev;
    return 0;
}

static errint_t open_dir(struct disk_dir *dir, const char *path,
                         const uint8_t owner[MOB_ID_OWNER_BYTES], const char *key,
                         struct mob_error *err)
{
    dir->fd = dir->objects_fd = -1;
    dir->identity = (struct disk_identity){0};
    memcpy(dir->identity.owner, owner, MOB_ID_OWNER_BYTES);
    dir->path = strdup(path);
    if (!dir->path)
        return mob_error_set(err, -ENOMEM, "no memory");
    dir->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir->fd < 0 && errno == ENOENT)
        return 0;
    if (dir->fd < 0)
        return mob_error_set(err, -errno, "%s: %s", path, strerror(errno));
    errint_t error = read_identity(dir, key, err);
    return error && error != -ENOENT ? error : open_objects(dir, err);
}

static errint_t make_dir(struct disk_dir *dir, const char *key, struct mob_error *err)
{
    errint_t error = 0;
    if (dir->fd < 0) {
        error = mob_make_directories(dir->path, geteuid() == 0 ? 0711 : 0700);
        dir->fd = error ? -1 : open(dir->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (!error && dir->fd < 0)
            error = -errno;
        if (error)
            return mob_error_set(err, error, "%s: %s", dir->path, strerror(-error));
        error = read_identity(dir, key, err); /* another path to it may have made it */
        if (error && error != -ENOENT)
            return error;
    }
    bool named = *dir->identity.directory;
    if (!named || strcmp(dir->identity.key, key) != 0) {
        error = named ? 0 : disk_identity_new(dir->identity.directory);
        snprintf(dir->identity.key, sizeof dir->identity.key, "%s", key);
        if (!error)
            error = write_identity(dir);
        if (error)
            return mob_error_set(err, error, "%s/%s: %s", dir->path, DISK_IDENTITY_NAME,
                                 strerror(-error));
    }
    if (dir->objects_fd >= 0)
        return 0;
    if (mkdirat(dir->fd, "objects", 0700) < 0 && errno != EEXIST)
        return mob_error_set(err, -errno, "%s/objects: %s", dir->path, strerror(errno));
    error = open_objects(dir, err);
    if (!error && dir->objects_fd < 0)
        error = mob_error_set(err, -ENOENT, "%s/objects has gone", dir->path);
    return error;
}

static errint_t open_work_dir(struct disk *disk, struct mob_error *err)
{
    const struct disk_dir *first = &disk->dirs[0];
    struct stat info;
    cleanup_free char *path = NULL;
    if (asprintf(&path, "%s/work", first->path) < 0) {
        path = NULL;
        return mob_error_set(err, -ENOMEM, "no memory");
    }
    if (mkdirat(first->fd, "work", 0711) < 0 && errno != EEXIST)
        return mob_error_set(err, -errno, "%s: %s", path, strerror(errno));
    cleanup_fd int fd = openat(first->fd, "work", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fchmod(fd, 0711) < 0 || fstat(first->fd, &info) < 0)
        return mob_error_set(err, -errno, "%s: %s", path, strerror(errno));
    if (geteuid() == 0 && (info.st_mode & 0111) != 0111 &&
        fchmod(first->fd, (info.st_mode & 07777) | 0111) < 0)
        return mob_error_set(err, -errno, "%s: %s", first->path, strerror(errno));
    disk->work_dir = realpath(path, NULL);
    return disk->work_dir ? 0 : mob_error_set(err, -errno, "%s: %s", path, strerror(errno));
}

/* What is swept in one would be what the other has: the last of so many is none of those before. */
static errint_t check_twice(const struct disk *disk, unsigned count, struct mob_error *err)
{
    struct stat first, second;
    const struct disk_dir *last = &disk->dirs[count - 1];
    if (last->objects_fd < 0)
        return 0;
    if (fstat(last->objects_fd, &second) < 0)
        return mob_error_set(err, -errno, "%s: %s", last->path, strerror(errno));
    for (const struct disk_dir *dir = disk->dirs; dir < last; dir++)
        if (dir->objects_fd >= 0 && fstat(dir->objects_fd, &first) == 0 &&
            first.st_dev == second.st_dev && first.st_ino == second.st_ino)
            return mob_error_set(err, -EINVAL, "%s and %s are the same spill directory", dir->path,
                                 last->path);
    return 0;
}

errint_t disk_open(struct disk *disk, const char *const *paths, uint64_t budget_bytes,
                   const uint8_t owner[MOB_ID_OWNER_BYTES], const char *key, struct mob_error *err)
{
    disk->key = key;
    disk->budget_bytes = budget_bytes;
    for (; paths && *paths; paths++) {
        if (disk->count == DISK_DIRS)
            return mob_error_set(err, -EINVAL, "more than %d spill directories", DISK_DIRS);
        errint_t error = open_dir(&disk->dirs[disk->count++], *paths, owner, key, err);
        if (!error)
            error = check_twice(disk, disk->count, err);
        if (error)
            return error;
    }
    return 0;
}

errint_t disk_make(struct disk *disk, struct mob_error *err)
{
    for (unsigned i = 0; i < disk->count; i++) {
        errint_t error = make_dir(&disk->dirs[i], disk->key, err);
        if (!error)
            error = check_twice(disk, i + 1, err);
        if (error)
            return error;
    }
    return disk->count ? open_work_dir(disk, err) : 0;
}

void disk_close(struct disk *disk)
{
    while (disk->count) {
        struct disk_dir *dir = &disk->dirs[--disk->count];
        mob_cleanup_fd(&dir->objects_fd);
        mob_cleanup_fd(&dir->fd);
        free(dir->path);
    }
    free(disk->work_dir);
    disk->work_dir = NULL;
}

/* --- room --- */

static uint64_t room_of(const struct disk_dir *dir)
{
    struct statvfs info;
    if (fstatvfs(dir->objects_fd, &info) < 0)
        return 0;
    uint64_t unit = info.f_frsize, reserve = info.f_blocks * unit / 20;
    uint64_t free_bytes = info.f_bavail * unit;
    if (reserve > RESERVE_MOST)
        reserve = RESERVE_MOST;
    /* On a filesystem of less than a few hundred MB the least would be most of it. */
    if (reserve < RESERVE_LEAST)
        reserve = info.f_blocks * unit / 4 < RESERVE_LEAST ? reserve : RESERVE_LEAST;
    return free_bytes > reserve ? free_bytes - reserve : 0;
}

static uint64_t budget_left(const struct disk *disk)
{
    uint64_t used = disk_used(disk);
    if (!disk->budget_bytes)
        return UINT64_MAX;
    return disk->budget_bytes > used ? disk->budget_bytes - used : 0;
}

bool disk_fits(const struct disk *disk, uint64_t bytes)
{
    return bytes <= budget_left(disk);
}

uint64_t disk_room(const struct disk *disk)
{
    uint64_t room = 0, left = budget_left(disk);
    for (unsigned i = 0; i < disk->count; i++) {
        bool counted = false; /* several directories of one filesystem have its room once */
        for (unsigned j = 0; j < i; j++)
            counted = counted || disk->dirs[j].device == disk->dirs[i].device;
        room += counted ? 0 : room_of(&disk->dirs[i]);
    }
    return room < left ? room : left;
}

uint64_t disk_largest_room(const struct disk *disk)
{
    uint64_t largest = 0, left = budget_left(disk);
    for (unsigned i = 0; i < disk->count; i++) {
        uint64_t room = room_of(&disk->dirs[i]);
        largest = room > largest ? room : largest;
    }
    return largest < left ? largest : left;
}

/* --- files --- */

int disk_open_file(const struct disk *disk, unsigned dir, uint64_t file, int flags)
{
    char name[DATA_NAME_BYTES];
    if (dir >= disk->count || disk->dirs[dir].objects_fd < 0)
        return -ENOENT;
    int fd = openat(disk->dirs[dir].objects_fd, data_name(file, name),
                    flags | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd < 0 ? -errno : fd;
}

int disk_open_file_now(const struct disk *disk, unsigned dir, uint64_t file, int flags)
{
    char name[DATA_NAME_BYTES];
    struct open_how how = {.flags = (uint64_t)flags | O_CLOEXEC | O_NOFOLLOW,
                           .resolve = RESOLVE_CACHED};
    if (dir >= disk->count || disk->dirs[dir].objects_fd < 0)
        return -ENOENT;
    long fd =
        syscall(SYS_openat2, disk->dirs[dir].objects_fd, data_name(file, name), &how, sizeof how);
    if (fd < 0) /* a seccomp profile may refuse the call */
        return errno == ENOSYS || errno == EPERM ? -EAGAIN : -errno;
    return (int)fd;
}

int disk_find_file(const struct disk *disk, uint64_t file, int flags, unsigned *dir)
{
    int fd = -ENOENT;
    for (unsigned i = 0; i < disk->count && fd == -ENOENT; i++) {
        fd = disk_open_file(disk, i, file, flags);
        if (dir)
            *dir = i;
    }
    return fd;
}

/* What is at the directory's path now, with an objects/ and the identity that the store knows it
 * by. False: another directory, or it can't be made. */
static bool open_again(const struct disk_dir *dir, struct disk_dir *fresh)
{
    struct mob_error err = {0};
    if (open_dir(fresh, dir->path, dir->identity.owner, dir->identity.key, &err))
        return false;
    if (fresh->fd < 0 && (mob_make_directories(dir->path, geteuid() == 0 ? 0711 : 0700) ||
                          (fresh->fd = open(dir->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0))
        return false;
    if (!*fresh->identity.directory) {
        fresh->identity = dir->identity;
        if (write_identity(fresh))
            return false;
    }
    return !strcmp(fresh->identity.directory, dir->identity.directory) &&
           !make_dir(fresh, dir->identity.key, &err);
}

/* The directory's objects/ is gone, and perhaps the directory, while it was in use. What was in it
 * is lost; it takes new files again. The descriptors keep their numbers: others use them meanwhile.
 */
static bool make_again(struct disk_dir *dir)
{
    static pthread_mutex_t remaking = PTHREAD_MUTEX_INITIALIZER;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&remaking);
    struct disk_dir fresh;
    bool made = open_again(dir, &fresh) &&
                dup3(fresh.objects_fd, dir->objects_fd, O_CLOEXEC) >= 0 &&
                dup3(fresh.fd, dir->fd, O_CLOEXEC) >= 0;
    if (made)
        mob_log_error("store: %s/objects was removed, with the objects in it; it is made again",
                      dir->path);
    mob_cleanup_fd(&fresh.objects_fd);
    mob_cleanup_fd(&fresh.fd);
    free(fresh.path);
    return made;
}

int disk_make_file(struct disk *disk, uint64_t file, uint64_t bytes, int flags, unsigned *dir)
{
    int fd = -ENOSPC;
    if (bytes > budget_left(disk))
        return -ENOSPC;
    unsigned first = atomic_fetch_add(&disk->next, 1);
    for (unsigned i = 0; i < disk->count; i++) {
        unsigned at = (first + i) % disk->count;
        if (room_of(&disk->dirs[at]) < bytes)
            continue;
        fd = disk_open_file(disk, at, file, flags | O_CREAT | O_EXCL);
        if (fd == -ENOENT && make_again(&disk->dirs[at]))
            fd = disk_open_file(disk, at, file, flags | O_CREAT | O_EXCL);
        if (fd == -EINVAL && flags & O_DIRECT)
            fd = disk_open_file(disk, at, file, (flags & ~O_DIRECT) | O_CREAT);
        *dir = at;
        if (fd >= 0 || fd == -EEXIST)
            break; /* one that fails, or can't be written any more, leaves it to the others */
    }
    return fd;
}

errint_t disk_unlink_file(const struct disk *disk, unsigned dir, uint64_t file)
{
    char name[DATA_NAME_BYTES];
    if (dir >= disk->count)
        return 0;
    int result = unlinkat(disk->dirs[dir].objects_fd, data_name(file, name), 0);
    return result < 0 && errno != ENOENT ? -errno : 0;
}

void disk_remove_file(struct disk *disk, unsigned dir, uint64_t file, uint64_t bytes)
{
    char name[DATA_NAME_BYTES];
    if (dir >= disk->count)
        return;
    errint_t error = disk_unlink_file(disk, dir, file);
    if (error)
        mob_log_error("store: can't remove %s/objects/%s: %s", disk->dirs[dir].path,
                      data_name(file, name), strerror(-error));
    disk_count(disk, -(int64_t)bytes);
}

errint_t disk_clear_file(const struct disk *disk, uint64_t file)
{
    char name[DATA_NAME_BYTES];
    struct stat info;
    data_name(file, name);
    for (unsigned i = 0; i < disk->count; i++) {
        int fd = disk->dirs[i].objects_fd;
        /* Asked first: a read-only filesystem refuses to remove even what isn't there. */
        if (fstatat(fd, name, &info, AT_SYMLINK_NOFOLLOW) == 0 && unlinkat(fd, name, 0) < 0 &&
            errno != ENOENT)
            return -errno;
    }
    return 0;
}

char *disk_path(const struct disk *disk, unsigned dir, uint64_t file)
{
    char name[DATA_NAME_BYTES], *path = NULL;
    if (dir < disk->count &&
        asprintf(&path, "%s/objects/%s", disk->dirs[dir].path, data_name(file, name)) < 0)
        path = NULL;
    return path;
}

static errint_t each_of(const struct disk *disk, unsigned at,
                        errint_t (*each)(void *argument, uint64_t file, unsigned dir),
                        void *argument)
{
    if (disk->dirs[at].objects_fd < 0)
        return 0;
    int fd = openat(disk->dirs[at].objects_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir)
        return -errno;
    errint_t error = 0;
    const struct dirent *entry;
    while (!error && (entry = readdir(dir))) {
        uint64_t file;
        if (data_name_parse(entry->d_name, &file))
            error = each(argument, file, at);
        else if (entry->d_name[0] != '.')
            mob_log_warning("store: %s/objects/%s is not mine; it is left alone",
                            disk->dirs[at].path, entry->d_name);
    }
    closedir(dir);
    return error;
}

errint_t disk_each_file(const struct disk *disk,
                        errint_t (*each)(void *argument, uint64_t file, unsigned dir),
                        void *argument)
{
    errint_t error = 0;
    for (unsigned i = 0; i < disk->count && !error; i++)
        error = each_of(disk, i, each, argument);
    return error;
}
