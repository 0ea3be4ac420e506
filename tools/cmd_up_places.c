/* mobula up: the places that a daemon keeps things in, before it is started. */
#include "tools/cmd_up_places.h"

#include <string.h>
#include <sys/statvfs.h>

int up_check_memory(const struct cli *cli, const struct up_options *options)
{
    enum { CONTAINER_DEFAULT_BYTES = 64 << 20 };
    struct statvfs shm;
    uint64_t whole = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t wanted = 0;
    char have[32], want[32];
    if (options->memory && mob_parse_size(options->memory, whole, &wanted, NULL))
        wanted = 0; /* it has been refused already */
    if (wanted > whole)
        cli_note(cli,
                 "warning: --memory: %s, but the machine has only %s: it may run out of memory",
                 mob_format_size(wanted, want), mob_format_size(whole, have));
    if (geteuid() == 0 || statvfs("/dev/shm", &shm))
        return EX_OK;
    uint64_t size = (uint64_t)shm.f_blocks * shm.f_frsize;
    if (wanted > size)
        return cli_fail(cli, EX_CONFIG,
                        "--memory: %s, but /dev/shm has only %s: make it larger (docker run "
                        "--shm-size=%s; mount -o remount,size=%s /dev/shm) or ask for less",
                        mob_format_size(wanted, want), mob_format_size(size, have), options->memory,
                        options->memory);
    if (!options->memory && size <= CONTAINER_DEFAULT_BYTES)
        cli_note(cli,
                 "warning: /dev/shm has only %s, a container's default: docker run "
                 "--shm-size=4g gives more",
                 mob_format_size(size, have));
    return EX_OK;
}

int up_make_state(const struct cli *cli, struct up_options *options, const char *mount_path)
{
    char parent[PATH_MAX], real[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", options->state);
    char *slash = strrchr(parent, '/');
    if (slash && slash > parent) {
        *slash = '\0';
        errint_t made = mob_make_directories(parent, 0755);
        if (made)
            return cli_fail(cli, EX_CANTCREAT, "--state: %s: %s", parent, cli_errno_text(made));
    }
    bool was_there = !access(options->state, F_OK);
    errint_t error = mob_make_directories(options->state, 0700);
    if (error)
        return cli_fail(cli, EX_CANTCREAT, "--state: %s: %s", options->state,
                        cli_errno_text(error));
    if (!realpath(options->state, real))
        return cli_fail(cli, EX_CANTCREAT, "--state: %s: %s", options->state, strerror(errno));
    if (access(real, W_OK | X_OK))
        return cli_fail(cli, EX_NOPERM, "--state: %s: %s", real, strerror(errno));
    if (spill_place_is_inside(real, mount_path)) {
        if (!was_there)
            rmdir(real);
        cli_usage(cli, "--state: %s lies in the directory that is mounted over", real);
    }
    free(options->state);
    options->state = strdup(real);
    return options->state ? EX_OK : cli_fail(cli, EX_OSERR, "no memory");
}

static void warn_of_memory(const struct cli *cli, const char *path)
{
    cli_note(cli, "warning: --spill: %s is in memory: what is spilled there frees none", path);
}

int up_check_spills(const struct cli *cli, struct up_options *options, const char *mount_path)
{
    char real[PATH_MAX];
    struct mob_error err = {0};
    if (!options->spills[0] && spill_place_is_in_memory(options->state))
        warn_of_memory(cli, options->state);
    if (!options->spills[0] || !strcmp(options->spills[0], SPILL_PLACE_NONE))
        return EX_OK;
    for (size_t i = 0; options->spills[i]; i++) {
        errint_t error = spill_place_check(options->spills[i], mount_path, real, &err);
        if (error == -EINVAL)
            cli_usage(cli, "%s", err.message);
        if (error)
            return cli_fail(cli, error == -EACCES ? EX_NOPERM : EX_CANTCREAT, "%s", err.message);
        for (size_t j = 0; j < i; j++)
            if (!strcmp(options->spills[j], real))
                cli_usage(cli, "--spill: %s is given twice", real);
        if (spill_place_is_in_memory(real))
            warn_of_memory(cli, real);
        free(options->spills[i]);
        if (!(options->spills[i] = strdup(real)))
            return cli_fail(cli, EX_OSERR, "no memory");
    }
    return EX_OK;
}

int up_check_forgets(const struct cli *cli, struct up_options *options)
{
    char real[PATH_MAX];
    struct mob_error err = {0};
    for (size_t i = 0; options->forgets[i]; i++) {
        errint_t error = spill_place_locate(options->forgets[i], "--forget-spill", real, &err);
        if (error == -EINVAL)
            cli_usage(cli, "%s", err.message);
        if (error)
            return cli_report(cli, &err);
        free(options->forgets[i]);
        if (!(options->forgets[i] = strdup(real)))
            return cli_fail(cli, EX_OSERR, "no memory");
    }
    return EX_OK;
}
