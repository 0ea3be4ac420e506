/* mobula doctor, spilling: where objects would go and where they go, and by which means. */
#include "tools/cmd_doctor.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>

#include "core/store/disk_header.h"
#include "tools/cli_daemon.h"
#include "tools/cmd_up_options.h"

enum { ROOT_FREE_PERCENT = 10 };

/* False if it was looked at before. */
static bool note_place(struct doctor *doctor, const char *path)
{
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(doctor->spill_places); i++) {
        if (!doctor->spill_places[i]) {
            doctor->spill_places[i] = strdup(path);
            return true;
        }
        if (!strcmp(doctor->spill_places[i], path))
            return false;
    }
    return true;
}

static bool is_on_root(const char *path)
{
    struct stat place, root;
    return !stat(path, &place) && !stat("/", &root) && place.st_dev == root.st_dev;
}

/* Only said where it is so: it is an aid, and nothing needs it. */
static void check_attributes(struct doctor *doctor, const char *path, const char *place)
{
    if (getxattr(place, DISK_HEADER_NAME, NULL, 0) < 0 && errno == EOPNOTSUPP)
        doctor_find(doctor, "spill", DOCTOR_WARN,
                    "choose a directory on another filesystem with --spill (ext4, xfs, btrfs)",
                    "%s: its filesystem has no user attributes, so 'mobula doctor --spill' can't "
                    "verify it",
                    path);
}

/* `used`: a daemon spills there. What another user's daemon may write, this process may not. */
static void check_place(struct doctor *doctor, const char *path, bool used)
{
    char place[PATH_MAX], available[32];
    struct statvfs disk;
    if (!note_place(doctor, path))
        return;
    spill_place_nearest(path, place);
    int error = access(used ? path : place, W_OK | X_OK) ? errno : 0;
    if (used && error == EACCES)
        return;
    if (error) {
        doctor_find(doctor, "spill", DOCTOR_FAIL,
                    error == EROFS    ? "as root: 'mount -o remount,rw' its filesystem; or choose "
                                        "another with --spill"
                    : error == ENOENT ? "'mobula down', then 'mobula up'"
                                      : "choose another with --spill",
                    "%s can't be written: %s", path, strerror(error));
        return;
    }
    check_attributes(doctor, path, place);
    if (statvfs(place, &disk))
        return;
    uint64_t bytes = (uint64_t)disk.f_bavail * disk.f_frsize;
    uint64_t whole = (uint64_t)disk.f_blocks * disk.f_frsize;
    mob_format_size(bytes, available);
    if (spill_place_is_in_memory(place))
        doctor_find(doctor, "spill", DOCTOR_WARN, "choose a directory on a disk with --spill",
                    "%s is in memory: what is spilled there frees none", path);
    else if (is_on_root(place) && bytes < whole / 100 * ROOT_FREE_PERCENT)
        doctor_find(doctor, "spill", DOCTOR_WARN,
                    "make room, set a limit with --disk, or choose another disk with --spill",
                    "%s, only %s free, on the filesystem that the whole machine needs", path,
                    available);
    else
        doctor_find(doctor, "spill", DOCTOR_OK, NULL, "%s, %s free on its disk", path, available);
}

/* --- what `mobula up` would use --- */

void doctor_check_spill(struct doctor *doctor)
{
    char path[PATH_MAX];
    struct up_options options = {0};
    struct mob_error err = {0};
    if (!doctor->state_given && up_options_complete(&options, &err))
        doctor_find(doctor, "spill", DOCTOR_FAIL, "mend the option file", "%s", err.message);
    else if (options.spills[0] && !strcmp(options.spills[0], SPILL_PLACE_NONE))
        doctor_find(doctor, "spill", DOCTOR_OK, NULL, "is off in the option file");
    else if (options.spills[0])
        for (size_t i = 0; options.spills[i]; i++)
            check_place(doctor, options.spills[i], false);
    else if (snprintf(path, sizeof path, "%s/spill",
                      doctor->state_given ? doctor->state : options.state) < (int)sizeof path)
        check_place(doctor, path, false);
    up_options_free(&options);
}

/* --- what a mount uses --- */

/* The --spill of its command line. False: it has none. */
static bool check_arguments(struct doctor *doctor, pid_t keeper_pid)
{
    static const char option[] = "--spill";
    char path[64];
    cleanup_free char *text = NULL;
    size_t bytes = 0;
    bool found = false, is_value = false;
    snprintf(path, sizeof path, "/proc/%d/cmdline", (int)keeper_pid);
    if (!cli_daemon_is_process(keeper_pid, NULL) ||
        mob_read_file(AT_FDCWD, path, 1 << 20, &text, &bytes))
        return false;
    for (const char *word = text; word < text + bytes; word += strlen(word) + 1) {
        const char *value = is_value ? word : NULL;
        is_value = !strcmp(word, option);
        if (!strncmp(word, option, sizeof option - 1) && word[sizeof option - 1] == '=')
            value = word + sizeof option;
        found |= value != NULL;
        if (value && *value == '/')
            check_place(doctor, value, true);
    }
    return found;
}

void doctor_check_mount_spill(struct doctor *doctor, const char *mount_path)
{
    struct cli_daemon daemon;
    struct cli_mount mount = {.fd = -1};
    char path[PATH_MAX];
    if (cli_daemon_read(mount_path, &daemon, NULL))
        return;
    cleanup_fd int root = open(mount_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    mount.fd = root;
    snprintf(path, sizeof path, "nodes/%s/memory", daemon.node);
    cleanup_free char *memory_text = cli_mount_read(&mount, path);
    snprintf(path, sizeof path, "nodes/%s/daemon", daemon.node);
    cleanup_free char *daemon_text = cli_mount_read(&mount, path);
    json_t *memory = cli_parse_key_values(memory_text ? memory_text : "");
    json_t *about = cli_parse_key_values(daemon_text ? daemon_text : "");
    const char *io = json_string_value(json_object_get(memory, "spill_io"));
    const char *state = json_string_value(json_object_get(about, "state_dir"));
    if (io && !strcmp(io, "none")) {
        doctor_find(doctor, "spill I/O", DOCTOR_OK, NULL, "%s: spilling is off (--spill none)",
                    mount_path);
    } else if (io && strcmp(io, "starting")) {
        bool ring = !strcmp(io, "io_uring"), locked = strstr(io, "buffers not registered");
        doctor_find(doctor, "spill I/O", ring ? DOCTOR_OK : DOCTOR_WARN,
                    locked ? "more memory that may be locked (ulimit -l, LimitMEMLOCK=); then "
                             "'mobula down' and 'mobula up'"
                           : "'sysctl kernel.io_uring_disabled=0', or in a container a seccomp "
                             "profile that allows io_uring; then 'mobula down' and 'mobula up'",
                    "%s: by %s%s", mount_path, io, ring ? "" : ", which is slower");
        if (!check_arguments(doctor, daemon.keeper_pid) && state &&
            snprintf(path, sizeof path, "%s/spill", state) < (int)sizeof path)
            check_place(doctor, path, true);
    }
    json_decref(memory);
    json_decref(about);
}
