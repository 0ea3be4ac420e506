/* mobula: the command. Finds the subcommand and runs it. */
#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include "tools/cli_common.h"

#include <string.h>

#ifndef PACKAGE_VERSION
#define PACKAGE_VERSION "unknown version"
#endif

/* In the order of `mobula --help`. */
static const struct cli_command *const commands[] = {
    &cmd_up,     &cmd_down, &cmd_status, &cmd_put,    &cmd_get, &cmd_wait, &cmd_run,
    &cmd_submit, &cmd_map,  &cmd_logs,   &cmd_cancel, &cmd_ls,  &cmd_stat, &cmd_doctor,
};

static void print_help(void)
{
    fputs("Usage: mobula COMMAND [OPTION]... [ARG]...\n"
          "An object store as a directory; jobs by dropping files.\n\n",
          stdout);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(commands); i++)
        printf("  %-8s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\n'mobula COMMAND --help' and mobula-COMMAND(1) tell more; 'mobula --version' the "
          "version.\n"
          "The mount is found from --mount, then $MOBULA, then the directory you stand in, then\n"
          "the only one there is.\n\n"
          "Example:\n"
          "  mkdir -p /tmp/store && mobula up /tmp/store && ls /tmp/store\n",
          stdout);
}

static int refuse(struct cli *cli, const char *name)
{
    static const char *const planned[] = {"top", "timeline", "cluster"};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(planned); i++)
        if (!strcmp(name, planned[i]))
            return cli_fail(cli, EX_USAGE, "'%s' is not there yet: no release has it", name);
    cli_usage(cli, "unknown command '%s'", name);
}

int main(int argc, char **argv)
{
    struct cli cli = {.command = NULL};
    const char *name = argc > 1 ? argv[1] : NULL;
    if (!name)
        cli_usage(&cli, "expected a command");
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        print_help();
        return cli_finish(&cli, EX_OK);
    }
    if (!strcmp(name, "--version") || !strcmp(name, "-V")) {
        printf("mobula %s\n", PACKAGE_VERSION);
        return cli_finish(&cli, EX_OK);
    }
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(commands); i++)
        if (!strcmp(name, commands[i]->name)) {
            cli.command = commands[i];
            int status = commands[i]->run(&cli, argc - 1, argv + 1);
            return cli_finish(&cli, status);
        }
    return refuse(&cli, name);
}
