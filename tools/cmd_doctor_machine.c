/* mobula doctor, the machine's side: programs, memory, limits, disk. */
#include "tools/cmd_doctor.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>

#include "tools/cli_daemon.h"
#include "tools/spill_place.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

/* --- programs --- */

static void check_programs(struct doctor *doctor)
{
    char path[PATH_MAX];
    struct stat st;
    bool found = cli_daemon_program(path);
    doctor_find(doctor, "mobulad", found ? DOCTOR_OK : DOCTOR_FAIL,
                "'make install', or keep mobulad beside mobula", "%s",
                found ? path : "the daemon is neither beside this program nor in $PATH");
    if (geteuid() == 0 && doctor_is_admin())
        return; /* mounts by itself */
    found = cli_find_program("fusermount3", path);
    bool can_mount = found && !stat(path, &st) && st.st_uid == 0 && (st.st_mode & S_ISUID);
    doctor_find(doctor, "fusermount3", can_mount ? DOCTOR_OK : DOCTOR_FAIL,
                found ? "as root: 'chmod u+s' on it; or mount as root"
                      : "install the package fuse3, or mount as root",
                "%s%s", found ? path : "is not installed",
                found && !can_mount ? " is not setuid root" : "");
}

static void check_users(struct doctor *doctor)
{
    if (geteuid())
        doctor_find(doctor, "users", DOCTOR_WARN, "a mount made by root is for all users",
                    "only you can use your mount");
}

/* --- memory --- */

static uint64_t whole_memory(void)
{
    return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t available_memory(void)
{
    cleanup_free char *text = NULL;
    if (mob_read_file(AT_FDCWD, "/proc/meminfo", 65536, &text, NULL))
        return whole_memory();
    const char *line = strstr(text, "MemAvailable:");
    return line ? strtoull(line + 13, NULL, 10) * 1024 : whole_memory();
}

/* The limit that the control group of this process sets (version 2 or 1); 0 = none that is below
 * the machine's memory. */
static uint64_t group_limit(int *version)
{
    cleanup_free char *groups = NULL, *text = NULL;
    char path[PATH_MAX], group[1024] = "";
    *version = 0;
    if (mob_read_file(AT_FDCWD, "/proc/self/cgroup", 65536, &groups, NULL))
        return 0;
    const char *memory = strstr(groups, ":memory:");
    const char *unified = strstr(groups, "0::");
    const char *place = memory ? memory + strlen(":memory:") : unified ? unified + 3 : NULL;
    if (!place)
        return 0;
    *version = memory ? 1 : 2;
    snprintf(group, sizeof group, "%.*s", (int)strcspn(place, "\n"), place);
    const char *root = memory ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup";
    const char *file = memory ? "memory.limit_in_bytes" : "memory.max";
    snprintf(path, sizeof path, "%s%s/%s", root, group, file);
    if (mob_read_file(AT_FDCWD, path, 64, &text, NULL)) {
        /* In a container the group of the outside is the root of the inside. */
        snprintf(path, sizeof path, "%s/%s", root, file);
        if (mob_read_file(AT_FDCWD, path, 64, &text, NULL))
            return 0;
    }
    uint64_t limit = strtoull(text, NULL, 10);
    return limit < whole_memory() ? limit : 0; /* "max" reads as 0 */
}

static void check_memory(struct doctor *doctor)
{
    char whole[32], available[32], limit_text[32];
    int version = 0;
    uint64_t bytes = whole_memory(), limit = group_limit(&version);
    doctor_find(doctor, "memory", available_memory() >= 256 * MIB ? DOCTOR_OK : DOCTOR_WARN,
                "end other programs, or mount with a small --memory",
                "%s, %s available; a mount takes 30 %% (--memory)", mob_format_size(bytes, whole),
                mob_format_size(available_memory(), available));
    if (!version)
        doctor_find(doctor, "cgroup", DOCTOR_OK, NULL, "no memory controller here");
    else if (!limit)
        doctor_find(doctor, "cgroup", DOCTOR_OK, NULL, "version %d, no memory limit", version);
    else
        doctor_find(
            doctor, "cgroup", limit < bytes * 2 / 5 ? DOCTOR_WARN : DOCTOR_OK,
            "objects count as memory of the group that writes them: mount with --memory well "
            "below the limit, or raise the limit",
            "version %d, memory limit %s", version, mob_format_size(limit, limit_text));
}

static void check_shared_memory(struct doctor *doctor)
{
    struct statvfs shm;
    struct statfs type;
    char size[32], available[32];
    bool own_tmpfs = geteuid() == 0 && doctor_is_admin();
    if (statvfs("/dev/shm", &shm) || statfs("/dev/shm", &type)) {
        doctor_find(doctor, "/dev/shm", own_tmpfs ? DOCTOR_OK : DOCTOR_FAIL,
                    "as root: 'mount -t tmpfs tmpfs /dev/shm'", "is not there%s",
                    own_tmpfs ? ", and not needed: root's mounts have a tmpfs of their own" : "");
        return;
    }
    uint64_t bytes = (uint64_t)shm.f_blocks * shm.f_frsize;
    bool small = bytes <= 64 * MIB, is_tmpfs = (uint64_t)type.f_type == TMPFS_MAGIC;
    doctor_find(doctor, "/dev/shm", (small || !is_tmpfs) && !own_tmpfs ? DOCTOR_WARN : DOCTOR_OK,
                is_tmpfs
                    ? "docker run --shm-size=4g, or as root: 'mount -o remount,size=4g /dev/shm'"
                    : "as root: 'mount -t tmpfs tmpfs /dev/shm'",
                "%s, %s free%s%s%s", mob_format_size(bytes, size),
                mob_format_size((uint64_t)shm.f_bavail * shm.f_frsize, available),
                is_tmpfs ? "" : ", but not in memory",
                small ? ": a container's default, too small for an ordinary user's objects" : "",
                own_tmpfs ? " (not used: root's mounts have a tmpfs of their own)" : "");
}

/* --- limits --- */

static void check_files(struct doctor *doctor)
{
    enum { ENOUGH_FILES = 16384 };
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit))
        return;
    bool enough = limit.rlim_max == RLIM_INFINITY || limit.rlim_max >= ENOUGH_FILES;
    doctor_find(doctor, "open files", enough ? DOCTOR_OK : DOCTOR_WARN,
                "'ulimit -Hn 65536' as root before 'mobula up', or nofile in "
                "/etc/security/limits.conf, or LimitNOFILE= of the unit",
                "up to %llu%s", (unsigned long long)limit.rlim_max,
                enough ? "" : ": each large object that is open takes one");
}

/* Where idle guest CPUs halt at once, waking one costs more than a request: see fs/wakeups.h. */
static void check_idle_cpus(struct doctor *doctor)
{
    cleanup_free char *driver = NULL, *poll_ns = NULL;
    if (mob_read_file(AT_FDCWD, "/sys/devices/system/cpu/cpuidle/current_driver", 256, &driver,
                      NULL) ||
        strncmp(driver, "haltpoll", 8) != 0 ||
        mob_read_file(AT_FDCWD, "/sys/module/haltpoll/parameters/guest_halt_poll_ns", 256, &poll_ns,
                      NULL))
        return;
    bool halts = atol(poll_ns) == 0, polls = !access("/dev/cpu_dma_latency", W_OK);
    doctor_find(doctor, "idle CPUs", !halts || polls ? DOCTOR_OK : DOCTOR_WARN,
                "as root: 'echo 200000 > /sys/module/haltpoll/parameters/guest_halt_poll_ns'", "%s",
                !halts  ? "poll a while before they halt"
                : polls ? "halt at once; they poll while requests come (--no-idle-polling)"
                        : "halt at once: each request waits for one to wake up");
}

/* --- disk --- */

static void check_state(struct doctor *doctor)
{
    char place[PATH_MAX], available[32];
    struct statvfs disk;
    spill_place_nearest(doctor->state, place);
    if (access(place, W_OK | X_OK)) {
        doctor_find(doctor, "state", DOCTOR_FAIL, "choose another with --state", "%s: %s: %s",
                    doctor->state, place, strerror(errno));
        return;
    }
    if (statvfs(place, &disk))
        return;
    uint64_t bytes = (uint64_t)disk.f_bavail * disk.f_frsize;
    mob_format_size(bytes, available);
    if (bytes < 16 * MIB)
        doctor_find(doctor, "state", DOCTOR_FAIL, "make room, or choose another with --state",
                    "%s: only %s free on its disk", doctor->state, available);
    else if (spill_place_is_in_memory(place))
        doctor_find(doctor, "state", DOCTOR_WARN, "choose a directory on a disk with --state",
                    "%s is in memory: nothing survives a reboot", doctor->state);
    else
        doctor_find(doctor, "state", bytes < GIB ? DOCTOR_WARN : DOCTOR_OK,
                    "make room: names and small objects lie there", "%s, %s free on its disk",
                    doctor->state, available);
}

void doctor_check_machine(struct doctor *doctor)
{
    check_programs(doctor);
    check_users(doctor);
    check_memory(doctor);
    check_shared_memory(doctor);
    check_files(doctor);
    check_idle_cpus(doctor);
    check_state(doctor);
}
