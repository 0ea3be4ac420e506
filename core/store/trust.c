/* What of a state directory can be trusted. See trust.h. */
#include "core/store/trust.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/log.h"
#include "core/base/util.h"

enum { TEXT_BYTES = 160, CHUNK_BYTES = 1 << 20 };
static const char data_path[] = "meta/data.mdb";

static errint_t read_boot(char **boot)
{
    size_t bytes;
    errint_t error = mob_read_file(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64, boot, &bytes);
    if (!error)
        (*boot)[strcspn(*boot, "\n")] = '\0';
    return error;
}

/* What is said while data.mdb is made anew. */
static errint_t memory_text(char out[TEXT_BYTES])
{
    cleanup_free char *boot = NULL;
    errint_t error = read_boot(&boot);
    if (!error)
        snprintf(out, TEXT_BYTES, "mobula 1 memory %s\n", boot);
    return error;
}

/* An inode's number may be given again, to the file of a copy that takes the place of a removed
 * directory: when it was made tells them apart, where the filesystem knows it. */
static errint_t running_text(int state_fd, char out[TEXT_BYTES])
{
    struct statx info;
    cleanup_free char *boot = NULL;
    if (statx(state_fd, data_path, AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &info) < 0)
        return -errno;
    if (!(info.stx_mask & STATX_BTIME))
        info.stx_btime = (struct statx_timestamp){0};
    errint_t error = read_boot(&boot);
    if (error)
        return error;
    snprintf(out, TEXT_BYTES, "mobula 1 running %s %u:%u %ju %jd.%u\n", boot, info.stx_dev_major,
             info.stx_dev_minor, (uintmax_t)info.stx_ino, (intmax_t)info.stx_btime.tv_sec,
             info.stx_btime.tv_nsec);
    return 0;
}

/* -ENODATA: the file is shorter. */
static errint_t sum_of(int state_fd, uint64_t bytes, XXH128_hash_t *sum)
{
    cleanup_fd int fd = openat(state_fd, data_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -errno;
    cleanup_free void *buffer = malloc(CHUNK_BYTES);
    XXH3_state_t *state = XXH3_createState();
    errint_t error = buffer && state ? 0 : -ENOMEM;
    if (state)
        XXH3_128bits_reset(state);
    posix_fadvise(fd, 0, (off_t)bytes, POSIX_FADV_SEQUENTIAL);
    for (uint64_t done = 0; done < bytes && !error;) {
        size_t wanted = bytes - done < CHUNK_BYTES ? (size_t)(bytes - done) : CHUNK_BYTES;
        ssize_t got = mob_pread_full(fd, buffer, wanted, (off_t)done);
        if (got != (ssize_t)wanted)
            error = got < 0 ? (errint_t)got : -ENODATA;
        else
            XXH3_128bits_update(state, buffer, wanted);
        done += wanted;
    }
    if (!error)
        *sum = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    return error;
}

static void clean_text(uint64_t bytes, XXH128_hash_t sum, char out[TEXT_BYTES])
{
    snprintf(out, TEXT_BYTES, "mobula 1 clean %" PRIu64 " %016" PRIx64 "%016" PRIx64 "\n", bytes,
             sum.high64, sum.low64);
}

static bool is_as_left(int state_fd, const char *text)
{
    char expected[TEXT_BYTES];
    uint64_t bytes;
    XXH128_hash_t sum;
    if (sscanf(text, "mobula 1 clean %" SCNu64, &bytes) != 1 || sum_of(state_fd, bytes, &sum))
        return false;
    clean_text(bytes, sum, expected);
    return !strcmp(text, expected);
}

/* NULL: there is no such file, or nothing that we wrote. */
static char *read_text(int state_fd, const char *name)
{
    char *text = NULL;
    size_t bytes;
    return mob_read_file(state_fd, name, TEXT_BYTES, &text, &bytes) ? NULL : text;
}

/* `data`: there is a data.mdb. */
static errint_t read_running(int state_fd, bool data, struct trust *out)
{
    char whole[TEXT_BYTES] = "", memory[TEXT_BYTES];
    cleanup_free char *running = read_text(state_fd, "running");
    if (!running)
        return 0;
    errint_t error = memory_text(memory);
    if (!error && data)
        error = running_text(state_fd, whole);
    out->meta = !error && !strcmp(running, whole);
    out->memory = out->meta || (!error && !strcmp(running, memory));
    return error;
}

errint_t trust_read(int state_fd, struct trust *out, struct mob_error *err)
{
    struct stat info;
    errint_t error = 0;
    *out = (struct trust){0};
    out->fresh = fstatat(state_fd, data_path, &info, AT_SYMLINK_NOFOLLOW) < 0;
    if (out->fresh && errno != ENOENT)
        return mob_error_set(err, -errno, "%s: %s", data_path, strerror(errno));
    cleanup_free char *clean = read_text(state_fd, "clean");
    out->clean = clean || faccessat(state_fd, "clean", F_OK, AT_SYMLINK_NOFOLLOW) == 0;
    if (out->clean) {
        out->memory = true;
        out->meta = clean && is_as_left(state_fd, clean);
        if (!out->meta)
            mob_log_error("store: %s is not as it was left", data_path);
    } else {
        error = read_running(state_fd, !out->fresh, out);
    }
    return error ? mob_error_set(err, error, "running: %s", strerror(-error)) : 0;
}

static errint_t unlink_if_there(int state_fd, const char *name)
{
    return unlinkat(state_fd, name, 0) < 0 && errno != ENOENT ? -errno : 0;
}

errint_t trust_running(int state_fd, struct mob_error *err)
{
    char text[TEXT_BYTES];
    errint_t error = running_text(state_fd, text);
    cleanup_free char *there = error ? NULL : read_text(state_fd, "running");
    if (!error && (!there || strcmp(there, text) != 0))
        error = mob_write_file(state_fd, "running", text, strlen(text), 0600);
    /* What it says is not true from the first change on. If it were there again after a power cut,
     * with a data.mdb that no change has reached, what was synced since would be cut off. */
    if (!error && unlinkat(state_fd, "clean", 0) == 0)
        error = fsync(state_fd) < 0 ? -errno : 0;
    else if (!error && errno != ENOENT)
        error = -errno;
    return error ? mob_error_set(err, error, "running: %s", strerror(-error)) : 0;
}

errint_t trust_clean(int state_fd, uint64_t used_bytes)
{
    char text[TEXT_BYTES];
    XXH128_hash_t sum;
    struct stat info;
    if (fstatat(state_fd, data_path, &info, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    if (used_bytes > (uint64_t)info.st_size) /* pages at its end that were never written */
        used_bytes = (uint64_t)info.st_size;
    errint_t error = sum_of(state_fd, used_bytes, &sum);
    if (error)
        return error;
    clean_text(used_bytes, sum, text);
    error = mob_write_file(state_fd, "clean", text, strlen(text), 0600);
    if (error)
        return error;
    cleanup_fd int fd = openat(state_fd, "clean", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    return fd < 0 || fsync(fd) < 0 || fsync(state_fd) < 0 ? -errno : 0;
}

/* In this order: whoever is killed in between says of memory what was said before. What is removed
 * must not be there again after a power cut. */
errint_t trust_discard(int state_fd, bool memory, struct mob_error *err)
{
    static const char *const names[] = {"clean", "meta/lock.mdb", data_path};
    char text[TEXT_BYTES];
    errint_t error = memory ? memory_text(text) : unlink_if_there(state_fd, "running");
    if (!error && memory)
        error = mob_write_file(state_fd, "running", text, strlen(text), 0600);
    if (error)
        return mob_error_set(err, error, "running: %s", strerror(-error));
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(names); i++) {
        error = unlink_if_there(state_fd, names[i]);
        if (error)
            return mob_error_set(err, error, "%s: %s", names[i], strerror(-error));
    }
    return fsync(state_fd) < 0 ? mob_error_set(err, -errno, "clean: %s", strerror(errno)) : 0;
}
