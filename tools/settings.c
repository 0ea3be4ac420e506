/* Settings: reading the command line of mobulad. */
#include "tools/settings.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "config.h"
#include "core/base/util.h"

enum option_id {
    OPT_NAME = 256,
    OPT_STATE,
    OPT_MEMORY,
    OPT_SPILL,
    OPT_FORGET_SPILL,
    OPT_DISK,
    OPT_CPUS,
    OPT_TRANSPORT,
    OPT_NO_PASSTHROUGH,
    OPT_NO_IDLE_POLLING,
    OPT_FOREGROUND,
    OPT_READY_FD,
    OPT_LOG,
    OPT_HELP,
    OPT_SPILL_KEY,
    OPT_VERSION
};

static const struct option options[] = {
    {"name", required_argument, NULL, OPT_NAME},
    {"state", required_argument, NULL, OPT_STATE},
    {"memory", required_argument, NULL, OPT_MEMORY},
    {"spill", required_argument, NULL, OPT_SPILL},
    {"forget-spill", required_argument, NULL, OPT_FORGET_SPILL},
    {"spill-key", required_argument, NULL, OPT_SPILL_KEY},
    {"disk", required_argument, NULL, OPT_DISK},
    {"cpus", required_argument, NULL, OPT_CPUS},
    {"transport", required_argument, NULL, OPT_TRANSPORT},
    {"no-passthrough", no_argument, NULL, OPT_NO_PASSTHROUGH},
    {"no-idle-polling", no_argument, NULL, OPT_NO_IDLE_POLLING},
    {"foreground", no_argument, NULL, OPT_FOREGROUND},
    {"ready-fd", required_argument, NULL, OPT_READY_FD},
    {"log", required_argument, NULL, OPT_LOG},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

static const char usage[] =
    "usage: mobulad MNT [--name N] [--state DIR] [--memory SIZE]\n"
    "               [--spill DIR|none]... [--forget-spill DIR]... [--spill-key FILE]\n"
    "               [--disk SIZE] [--cpus N]\n"
    "               [--transport auto|io_uring|device] [--no-passthrough]\n"
    "               [--no-idle-polling]\n"
    "               [--foreground] [--log FILE] [--ready-fd FD]\n"
    "Serves an object store at MNT. `mobula up` starts it; see mobulad(8).\n"
    "example: mobulad /mnt/store --memory 4G --foreground\n";

static uint64_t ram_bytes(void)
{
    struct sysinfo info;
    return sysinfo(&info) ? UINT64_C(1) << 30 : (uint64_t)info.totalram * info.mem_unit;
}

static errint_t parse_memory(const char *text, struct settings *settings, struct mob_error *err)
{
    errint_t error = mob_parse_size(text, ram_bytes(), &settings->memory_bytes, err);
    if (!error && settings->memory_bytes < (1u << 20))
        error = mob_error_set(err, -EINVAL, "--memory: %s is less than 1M", text);
    return error;
}

static errint_t parse_cpus(const char *text, struct settings *settings, struct mob_error *err)
{
    char *end;
    settings->cpus = strtod(text, &end);
    if (end == text || *end || !isfinite(settings->cpus) || settings->cpus <= 0 ||
        settings->cpus > 1e6)
        return mob_error_set(err, -EINVAL, "--cpus: '%s' is no number above 0", text);
    return 0;
}

static errint_t parse_transport(const char *text, struct settings *settings, struct mob_error *err)
{
    if (!strcmp(text, "auto"))
        settings->transport = TRANSPORT_AUTO;
    else if (!strcmp(text, "io_uring"))
        settings->transport = TRANSPORT_RING;
    else if (!strcmp(text, "device"))
        settings->transport = TRANSPORT_DEVICE;
    else
        return mob_error_set(err, -EINVAL, "--transport: '%s' is not one of auto, io_uring, device",
                             text);
    return 0;
}

static errint_t parse_name(const char *text, struct settings *settings, struct mob_error *err)
{
    size_t length = strlen(text);
    if (length == 0 || length >= sizeof settings->name || strchr(text, '/') || text[0] == '.')
        return mob_error_set(err, -EINVAL,
                             "--name: '%s' can't be a node's name: 1 to 63 bytes, no '/', "
                             "not beginning with '.'",
                             text);
    memcpy(settings->name, text, length + 1);
    return 0;
}

static errint_t absolute_path(const char *text, const char *option, char *out, size_t out_bytes,
                              struct mob_error *err)
{
    char here[PATH_MAX] = "";
    if (text[0] != '/' && !getcwd(here, sizeof here))
        return mob_error_set(err, -errno, "%s: the working directory is gone", option);
    if (snprintf(out, out_bytes, "%s%s%s", here, text[0] == '/' ? "" : "/", text) >= (int)out_bytes)
        return mob_error_set(err, -ENAMETOOLONG, "%s: the path is too long", option);
    return 0;
}

static errint_t add_spill(const char *text, struct settings *settings, struct mob_error *err)
{
    char path[PATH_MAX];
    size_t count = 0;
    while (settings->spill_dirs[count])
        count++;
    bool none = !strcmp(text, SPILL_PLACE_NONE);
    if (settings->no_spill || (none && count))
        return mob_error_set(err, -EINVAL, "--spill: no directory can stand beside 'none'");
    settings->no_spill = none;
    if (none)
        return 0;
    if (!*text)
        return mob_error_set(err, -EINVAL, "--spill: expected a directory, or 'none'");
    if (count == SPILL_PLACES_LIMIT)
        return mob_error_set(err, -EINVAL, "--spill: more than %d directories", SPILL_PLACES_LIMIT);
    errint_t error = absolute_path(text, "--spill", path, sizeof path, err);
    if (!error && !(settings->spill_dirs[count] = strdup(path)))
        error = mob_error_set(err, -ENOMEM, "--spill: no memory");
    return error;
}

static errint_t add_forget(const char *text, struct settings *settings, struct mob_error *err)
{
    char path[PATH_MAX];
    size_t count = 0;
    while (settings->forget_dirs[count])
        count++;
    if (!*text)
        return mob_error_set(err, -EINVAL, "--forget-spill: expected a directory");
    if (count == SPILL_PLACES_LIMIT)
        return mob_error_set(err, -EINVAL, "--forget-spill: more than %d directories",
                             SPILL_PLACES_LIMIT);
    errint_t error = absolute_path(text, "--forget-spill", path, sizeof path, err);
    if (!error && !(settings->forget_dirs[count] = strdup(path)))
        error = mob_error_set(err, -ENOMEM, "--forget-spill: no memory");
    return error;
}

/* What "%" is of is only known once there are directories: settings_prepare() looks again. */
static errint_t check_disk(const char *text, struct settings *settings, struct mob_error *err)
{
    struct mob_error inner = {0};
    uint64_t bytes;
    settings->disk = text;
    errint_t error = spill_disk_parse(text, UINT64_C(1) << 40, &bytes, &inner);
    return error ? mob_error_set(err, error, "--disk: %s", inner.message) : 0;
}

static errint_t apply(int option, const char *value, struct settings *settings,
                      struct mob_error *err)
{
    switch (option) {
    case OPT_NAME:
        return parse_name(value, settings, err);
    case OPT_STATE:
        return absolute_path(value, "--state", settings->state_dir, sizeof settings->state_dir,
                             err);
    case OPT_MEMORY:
        return parse_memory(value, settings, err);
    case OPT_SPILL:
        return add_spill(value, settings, err);
    case OPT_FORGET_SPILL:
        return add_forget(value, settings, err);
    case OPT_SPILL_KEY:
        return absolute_path(value, "--spill-key", settings->spill_key, sizeof settings->spill_key,
                             err);
    case OPT_DISK:
        return check_disk(value, settings, err);
    case OPT_CPUS:
        return parse_cpus(value, settings, err);
    case OPT_TRANSPORT:
        return parse_transport(value, settings, err);
    case OPT_NO_PASSTHROUGH:
        settings->passthrough = false;
        return 0;
    case OPT_NO_IDLE_POLLING:
        settings->idle_polling = false;
        return 0;
    case OPT_FOREGROUND:
        settings->foreground = true;
        return 0;
    case OPT_READY_FD:
        settings->ready_fd = atoi(value);
        return settings->ready_fd > 2 ? 0 : mob_error_set(err, -EINVAL, "--ready-fd: '%s'", value);
    case OPT_LOG:
        return absolute_path(value, "--log", settings->log_path, sizeof settings->log_path, err);
    case OPT_HELP:
        fputs(usage, stdout);
        return 1;
    case OPT_VERSION:
        puts("mobulad " PACKAGE_VERSION);
        return 1;
    default:
        return mob_error_set(err, -EINVAL, "unknown option or missing value; see mobulad --help");
    }
}

static errint_t default_state(struct settings *settings, struct mob_error *err)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int length;
    if (geteuid() == 0)
        length = snprintf(settings->state_dir, sizeof settings->state_dir, "/var/lib/mobula/%s",
                          settings->name);
    else if (state && state[0] == '/')
        length = snprintf(settings->state_dir, sizeof settings->state_dir, "%s/mobula/%s", state,
                          settings->name);
    else if (home && home[0] == '/')
        length = snprintf(settings->state_dir, sizeof settings->state_dir,
                          "%s/.local/state/mobula/%s", home, settings->name);
    else
        return mob_error_set(err, -EINVAL, "neither --state nor HOME is set");
    if (length >= (int)sizeof settings->state_dir)
        return mob_error_set(err, -ENAMETOOLONG, "the state directory's path is too long");
    return 0;
}

static errint_t default_spill(struct settings *settings, struct mob_error *err)
{
    char path[PATH_MAX];
    if (settings->no_spill || settings->spill_dirs[0])
        return 0;
    if (snprintf(path, sizeof path, "%s/spill", settings->state_dir) >= (int)sizeof path)
        return mob_error_set(err, -ENAMETOOLONG, "the state directory's path is too long");
    settings->spill_dirs[0] = strdup(path);
    return settings->spill_dirs[0] ? 0 : mob_error_set(err, -ENOMEM, "no memory");
}

errint_t settings_parse(int argc, char **argv, struct settings *out, struct mob_error *err)
{
    *out = (struct settings){
        .name = "node",
        .memory_bytes = ram_bytes() / 10 * 3,
        .cpus = (double)sysconf(_SC_NPROCESSORS_ONLN),
        .passthrough = true,
        .idle_polling = true,
        .ready_fd = -1,
        .own_tmpfs = geteuid() == 0,
    };
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        errint_t error = apply(option, optarg, out, err);
        if (error)
            return error;
    }
    if (out->spill_key[0] && out->no_spill)
        return mob_error_set(err, -EINVAL,
                             "--spill-key: with --spill none there is nothing to encrypt");
    if (optind + 1 != argc)
        return mob_error_set(err, -EINVAL,
                             "expected one directory to mount on; see mobulad --help");
    errint_t error =
        absolute_path(argv[optind], "MNT", out->mountpoint, sizeof out->mountpoint, err);
    if (!error && !out->state_dir[0])
        error = default_state(out, err);
    return error ? error : default_spill(out, err);
}
