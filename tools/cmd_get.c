/* mobula get: the bytes of an object, as soon as it is ready. */
#include "tools/cli_object.h"
#include "tools/cli_target.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

static const char help[] =
    "Usage: mobula get ID|NAME [-o FILE] [--timeout S]\n"
    "Print an object, waiting until it is ready.\n"
    "ID is an object or a job (then its result); NAME a name in staging/ or run/, or a path.\n"
    "\n"
    "  -o, --output FILE  write it there, whole or not at all\n"
    "  -t, --timeout S    give up after this time (seconds, or 250ms, 10m, 2h): status 75\n"
    "      --mount DIR    the mount to use\n"
    "\n"
    "Example:\n"
    "  mobula get $(echo hello | mobula put)\n";

static int copy_out(const struct cli *cli, int in, int out, const char *source,
                    const char *destination)
{
    struct cli_progress progress;
    bool reading = false;
    cli_progress_start(&progress);
    if (isatty(out))
        progress.terminal = false; /* it would be mixed with the content */
    errint_t error = cli_copy(in, out, NULL, &reading, &progress);
    if (error)
        return cli_fail(cli, reading ? cli_object_status(error) : EX_IOERR, "%s: %s",
                        reading ? source : destination, cli_errno_text(error));
    return EX_OK;
}

/* Writes a temporary name beside FILE and renames it, so that FILE is never half there. */
static int copy_to_file(const struct cli *cli, int in, const char *source, const char *file)
{
    char temporary[PATH_MAX];
    struct stat st, old;
    if (snprintf(temporary, sizeof temporary, "%s.mobula-%d", file, (int)getpid()) >=
        (int)sizeof temporary)
        return cli_fail(cli, EX_CANTCREAT, "%s: the name is too long", file);
    /* Not a plain file (a pipe, /dev/null): there is nothing to replace. */
    bool special = !stat(file, &old) && !S_ISREG(old.st_mode);
    mode_t mode = fstat(in, &st) ? 0666 : 0666 | (st.st_mode & 0111);
    int flags = special ? O_WRONLY : O_WRONLY | O_CREAT | O_EXCL;
    cleanup_fd int out = open(special ? file : temporary, flags | O_CLOEXEC, mode);
    if (out < 0)
        return cli_fail(cli, EX_CANTCREAT, "%s: %s", file, strerror(errno));
    if (special)
        return copy_out(cli, in, out, source, file);
    cli_undo_arm(AT_FDCWD, temporary);
    int status = copy_out(cli, in, out, source, file);
    if (close(steal_fd(&out)) && !status)
        status = cli_fail(cli, EX_IOERR, "%s: %s", file, strerror(errno));
    if (!status && rename(temporary, file))
        status = cli_fail(cli, EX_CANTCREAT, "%s: %s", file, strerror(errno));
    if (status)
        unlink(temporary);
    cli_undo_disarm();
    return status;
}

static int run(struct cli *cli, int argc, char **argv)
{
    static const struct option longs[] = {CLI_COMMON_OPTIONS,
                                          {"output", required_argument, NULL, 'o'},
                                          {"timeout", required_argument, NULL, 't'},
                                          {NULL, 0, NULL, 0}};
    const char *file = NULL;
    uint64_t deadline = CLI_NO_DEADLINE;
    for (int option; (option = cli_getopt(cli, argc, argv, "o:t:", longs)) != -1;) {
        if (option == 'o')
            file = optarg;
        else
            deadline = cli_deadline(cli_parse_duration(cli, "--timeout", optarg));
    }
    if (argc - optind != 1)
        cli_usage(cli, "expected one ID or NAME");
    struct mob_error err = {0};
    cleanup_mount struct cli_mount mount = CLI_MOUNT_NONE;
    struct cli_target target;
    if (cli_mount_find(cli, &mount, &err) || cli_target_object(&mount, argv[optind], &target, &err))
        return cli_report(cli, &err);
    cleanup_fd int in = cli_object_open(&mount, &target.id, argv[optind], deadline, &err);
    if (in < 0) {
        cli_fail(cli, 0, "%s", err.message);
        return cli_object_status(err.code);
    }
    return file ? copy_to_file(cli, in, argv[optind], file)
                : copy_out(cli, in, STDOUT_FILENO, argv[optind], "standard output");
}

const struct cli_command cmd_get = {"get", "print an object, waiting until it is ready", help, run};
