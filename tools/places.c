/* The places of a daemon: state directory, memory directory, and what is kept of memory between an
 * orderly end and the next start. */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/cluster/identity.h"
#include "core/store/store.h"
#include "tools/saved_memory.h"
#include "tools/settings.h"

static errint_t make_place(const char *path, mode_t mode, struct mob_error *err)
{
    errint_t error = mob_make_directories(path, mode);
    if (!error && chmod(path, mode))
        error = -errno;
    if (error)
        mob_error_set(err, error, "can't make the directory %s: %s", path, strerror(-error));
    return error;
}

/* A daemon that was killed just now may have a process that still goes: it is waited for. */
static int lock_patiently(int fd)
{
    const uint64_t deadline = mob_monotonic_ns() + UINT64_C(3000000000);
    int failed;
    while ((failed = flock(fd, LOCK_EX | LOCK_NB)) && errno == EWOULDBLOCK &&
           mob_monotonic_ns() < deadline)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    return failed;
}

static errint_t lock_state(const struct settings *settings, int *lock_fd, struct mob_error *err)
{
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/keeper.lock", settings->state_dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return mob_error_set(err, -errno, "can't open %s: %s", path, strerror(errno));
    if (lock_patiently(fd)) {
        errint_t error = errno == EWOULDBLOCK ? -EBUSY : -errno;
        close(fd);
        return mob_error_set(err, error,
                             "the state directory %s is in use by another mobulad; end that one "
                             "(mobula down) or give another --state or --name",
                             settings->state_dir);
    }
    *lock_fd = fd;
    return 0;
}

static bool is_own_tmpfs(const char *path)
{
    struct statfs fs;
    struct stat here, above;
    char parent[PATH_MAX + 8];
    snprintf(parent, sizeof parent, "%s/..", path);
    return !statfs(path, &fs) && fs.f_type == TMPFS_MAGIC && !stat(path, &here) &&
           !stat(parent, &above) && here.st_dev != above.st_dev;
}

/* What the kernel may put there at the most. With spilling, the store keeps within its budget by
 * itself, but a writer may be a little faster than it looks: the rest is for that. */
static unsigned long long tmpfs_bytes(const struct settings *settings)
{
    uint64_t bytes = settings->memory_bytes;
    return settings->spill_dirs[0] ? bytes + bytes / 100 * 8 : bytes;
}

static errint_t mount_tmpfs(const struct settings *settings, struct mob_error *err)
{
    char data[128];
    unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOATIME;
    if (is_own_tmpfs(settings->memory_dir))
        flags |= MS_REMOUNT;
    /* Huge pages make large objects faster to write and map (DESIGN.md); kernels without them
     * refuse the option. */
    snprintf(data, sizeof data, "size=%llu,mode=0711,huge=within_size", tmpfs_bytes(settings));
    if (!mount("mobula", settings->memory_dir, "tmpfs", flags, data))
        return 0;
    snprintf(data, sizeof data, "size=%llu,mode=0711", tmpfs_bytes(settings));
    if (!mount("mobula", settings->memory_dir, "tmpfs", flags, data))
        return 0;
    return mob_error_set(err, -errno, "can't mount a tmpfs of %llu bytes at %s: %s",
                         (unsigned long long)settings->memory_bytes, settings->memory_dir,
                         strerror(errno));
}

static errint_t place_memory(struct settings *settings, struct mob_error *err)
{
    if (settings->own_tmpfs) {
        snprintf(settings->memory_dir, sizeof settings->memory_dir, "%.*s/memory", PATH_MAX - 8,
                 settings->state_dir);
        errint_t error = make_place(settings->memory_dir, 0711, err);
        return error ? error : mount_tmpfs(settings, err);
    }
    /* The state directory's own number tells one folder from another. */
    struct stat st;
    if (stat(settings->state_dir, &st))
        return mob_error_set(err, -errno, "%s: %s", settings->state_dir, strerror(errno));
    snprintf(settings->memory_dir, sizeof settings->memory_dir, "/dev/shm/mobula-%u-%llx-%llx",
             (unsigned)getuid(), (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
    errint_t error = make_place(settings->memory_dir, 0700, err);
    struct statfs fs;
    if (!error &&
        (lstat(settings->memory_dir, &st) || !S_ISDIR(st.st_mode) || st.st_uid != getuid()))
        error = mob_error_set(err, -EPERM, "%s belongs to somebody else", settings->memory_dir);
    if (!error && !statfs("/dev/shm", &fs) &&
        (uint64_t)fs.f_blocks * (uint64_t)fs.f_bsize < settings->memory_bytes) {
        uint64_t whole = (uint64_t)fs.f_blocks * (uint64_t)fs.f_bsize;
        mob_log_warning("/dev/shm has %llu bytes, less than --memory: using that. In a container, "
                        "give it more (docker run --shm-size)",
                        (unsigned long long)whole);
        settings->memory_bytes = whole;
    }
    return error;
}

/* --- spill directories --- */

/* STATE/memory, where the tmpfs is mounted after this. */
static bool lies_in_own_tmpfs(const struct settings *settings, const char *real)
{
    char state[PATH_MAX], memory[PATH_MAX + 8];
    if (!realpath(settings->state_dir, state))
        return false;
    snprintf(memory, sizeof memory, "%s/memory", state);
    return spill_place_is_inside(real, memory);
}

static errint_t place_spill(struct settings *settings, size_t place, const char *mount_path,
                            struct mob_error *err)
{
    char real[PATH_MAX];
    errint_t error = spill_place_check(settings->spill_dirs[place], mount_path, real, err);
    if (error)
        return error;
    if (settings->own_tmpfs && lies_in_own_tmpfs(settings, real))
        return mob_error_set(err, -EINVAL, "--spill: %s lies in the daemon's own memory", real);
    for (size_t i = 0; i < place; i++)
        if (!strcmp(settings->spill_dirs[i], real))
            return mob_error_set(err, -EINVAL, "--spill: %s is given twice", real);
    if (spill_place_is_in_memory(real))
        mob_log_warning("--spill: %s is in memory: what is spilled there frees none", real);
    free(settings->spill_dirs[place]);
    settings->spill_dirs[place] = strdup(real);
    return settings->spill_dirs[place] ? 0 : mob_error_set(err, -ENOMEM, "no memory");
}

static errint_t place_spills(struct settings *settings, struct mob_error *err)
{
    char mount_path[PATH_MAX];
    if (!realpath(settings->mountpoint, mount_path))
        snprintf(mount_path, sizeof mount_path, "%s", settings->mountpoint);
    for (size_t i = 0; settings->spill_dirs[i]; i++) {
        errint_t error = place_spill(settings, i, mount_path, err);
        if (error)
            return error;
    }
    if (!settings->disk || !settings->spill_dirs[0])
        return 0;
    struct mob_error inner = {0};
    errint_t error =
        spill_disk_parse(settings->disk, spill_places_whole_bytes(settings->spill_dirs),
                         &settings->disk_bytes, &inner);
    return error ? mob_error_set(err, error, "--disk: %s", inner.message) : 0;
}

/* As the store knows them. */
static errint_t place_forgets(struct settings *settings, struct mob_error *err)
{
    char real[PATH_MAX];
    for (size_t i = 0; settings->forget_dirs[i]; i++) {
        errint_t error = spill_place_locate(settings->forget_dirs[i], "--forget-spill", real, err);
        if (error)
            return error;
        free(settings->forget_dirs[i]);
        settings->forget_dirs[i] = strdup(real);
        if (!settings->forget_dirs[i])
            return mob_error_set(err, -ENOMEM, "no memory");
    }
    return 0;
}

/* --- memory kept on disk between an orderly end and the next start --- */

static errint_t restore_memory(const struct settings *settings, const char *data_dir,
                               struct mob_error *err)
{
    errint_t error = saved_memory_restore(settings->saved_dir, data_dir);
    if (error)
        return mob_error_set(err, error,
                             "objects kept in %s don't fit into memory (%llu bytes): %s; give a "
                             "larger --memory",
                             settings->saved_dir, (unsigned long long)settings->memory_bytes,
                             strerror(-error));
    return 0;
}

/* Whether a server with a key has worked there: not whether one is given now. Who gives none is
 * refused, and may not copy to disk what others kept from it; and who gives one and is refused has
 * perhaps a plain store, whose memory was restored from the disk and must go back. */
static bool memory_is_secret(const struct settings *settings)
{
    char mark[PATH_MAX + sizeof STORE_ENCRYPTED_NAME + 1];
    snprintf(mark, sizeof mark, "%s/%s", settings->memory_dir, STORE_ENCRYPTED_NAME);
    return access(mark, F_OK) == 0 || errno != ENOENT;
}

errint_t settings_save_memory(const struct settings *settings, struct mob_error *err)
{
    char data_dir[PATH_MAX + 8];
    snprintf(data_dir, sizeof data_dir, "%s/data", settings->memory_dir);
    errint_t error = 0;
    if (!memory_is_secret(settings))
        error = saved_memory_keep(data_dir, settings->saved_dir);
    else if (saved_memory_is_any(data_dir))
        return mob_error_set(
            err, -EIO,
            "memory that is to be encrypted could not all be spilled (see above); it stays "
            "in %s until the machine goes down",
            settings->memory_dir);
    if (error)
        return mob_error_set(err, error,
                             "memory can't be kept on disk (%s): %s; it stays in %s until the "
                             "machine goes down",
                             settings->saved_dir, strerror(-error), settings->memory_dir);
    if (settings->own_tmpfs) {
        if (umount2(settings->memory_dir, MNT_DETACH))
            return mob_error_set(err, -errno, "can't unmount %s: %s", settings->memory_dir,
                                 strerror(errno));
        rmdir(settings->memory_dir);
        return 0;
    }
    saved_memory_remove(data_dir);
    saved_memory_remove(settings->work_dir);
    saved_memory_remove(settings->memory_dir);
    return 0;
}

errint_t settings_prepare(struct settings *settings, int *lock_fd, struct mob_error *err)
{
    char data_dir[PATH_MAX + 8];
    /* Others may pass through, to the work directories of their own jobs. */
    errint_t error = make_place(settings->state_dir, settings->own_tmpfs ? 0711 : 0700, err);
    if (!error)
        error = lock_state(settings, lock_fd, err);
    if (!error)
        error = place_spills(settings, err);
    if (!error)
        error = place_forgets(settings, err);
    if (!error)
        error = place_memory(settings, err);
    if (!error)
        error = identity_load(settings->state_dir, settings->owner, err);
    if (error)
        return error;
    snprintf(settings->work_dir, sizeof settings->work_dir, "%s/work", settings->memory_dir);
    snprintf(settings->saved_dir, sizeof settings->saved_dir, "%s/saved", settings->state_dir);
    snprintf(data_dir, sizeof data_dir, "%s/data", settings->memory_dir);
    error = make_place(settings->work_dir, 0711, err);
    if (!error)
        error = make_place(data_dir, 0700, err);
    return error ? error : restore_memory(settings, data_dir, err);
}
