/* What every subcommand of `mobula` shares: options, errors and exit codes, output, progress.
 *
 * A subcommand is one struct cli_command. It returns an exit status as sysexits(3) has them; what a
 * person must read goes to standard error as "mobula NAME: SENTENCE". Standard output is checked by
 * cli_finish(), which main() calls, so that a full disk is never a success.
 * Everything is single-threaded. */
#ifndef MOBULA_TOOLS_CLI_COMMON_H
#define MOBULA_TOOLS_CLI_COMMON_H

#include <getopt.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sysexits.h>

#include "core/base/error.h"
#include "core/base/util.h"

struct cli;

struct cli_command {
    const char *name;
    const char *summary; /* for the list in `mobula --help` */
    const char *help;    /* what --help prints: usage, options, example */
    int (*run)(struct cli *cli, int argc, char **argv);
};

/* One invocation. */
struct cli {
    const struct cli_command *command;
    const char *mount_option; /* --mount, or NULL */
    bool json;                /* --json */
};

extern const struct cli_command cmd_cancel, cmd_doctor, cmd_down, cmd_get, cmd_logs, cmd_ls,
    cmd_map, cmd_put, cmd_run, cmd_stat, cmd_status, cmd_submit, cmd_up, cmd_wait;

/* --- options --- */

enum { CLI_OPTION_MOUNT = 1000, CLI_OPTION_JSON, CLI_OPTION_FIRST };

#define CLI_COMMON_OPTIONS                                                                         \
    {"help", no_argument, NULL, 'h'},                                                              \
    {                                                                                              \
        "mount", required_argument, NULL, CLI_OPTION_MOUNT                                         \
    }
#define CLI_JSON_OPTION                                                                            \
    {                                                                                              \
        "json", no_argument, NULL, CLI_OPTION_JSON                                                 \
    }

/* getopt_long(3) that handles -h, --help, --mount and --json itself. `shorts` without the leading
 * ':' ('+' to stop at the first argument is allowed). Returns the option or -1. Bad usage ends the
 * process with EX_USAGE and the option named; --help ends it with 0. */
int cli_getopt(struct cli *cli, int argc, char **argv, const char *shorts,
               const struct option *longs);

/* Ends the process with EX_USAGE and the sentence, followed by where to find help. */
void cli_usage(const struct cli *cli, const char *format, ...) MOB_PRINTF(2, 3)
    __attribute__((noreturn));

/* Values of options; anything else than a good one ends the process with EX_USAGE. `option` is
 * "--timeout" and the like. A deadline counts from now on mob_monotonic_ns(). */
uint64_t cli_parse_count(const struct cli *cli, const char *option, const char *text,
                         uint64_t least, uint64_t most);
uint64_t cli_parse_duration(const struct cli *cli, const char *option, const char *text);
double cli_parse_cpus(const struct cli *cli, const char *option, const char *text);
/* The value of --name: relative, and without '.' and '..'. */
void cli_check_name(const struct cli *cli, const char *name);

#define CLI_NO_DEADLINE UINT64_MAX
uint64_t cli_deadline(uint64_t duration_ns);
/* Milliseconds until `deadline` for poll(2), at most `most_ms`; 0 when it has passed. */
int cli_poll_ms(uint64_t deadline, int most_ms);

/* --- errors --- */

/* Prints "mobula NAME: SENTENCE" on standard error and returns `status`. */
int cli_fail(const struct cli *cli, int status, const char *format, ...) MOB_PRINTF(3, 4);
/* The same without a status: for what does not end the command. */
void cli_note(const struct cli *cli, const char *format, ...) MOB_PRINTF(2, 3);
/* Prints the sentence of `err` and returns cli_status(err->code). */
int cli_report(const struct cli *cli, const struct mob_error *err);

/* The exit status that fits a negative errno: ENOENT EX_NOINPUT, EACCES EX_NOPERM, EIO EX_IOERR,
 * ENOTCONN EX_UNAVAILABLE, ETIME (a --timeout that ran out) EX_TEMPFAIL, ... */
int cli_status(errint_t code);

/* "No such file or directory" for a negative errno, as a sentence's part. */
const char *cli_errno_text(errint_t code);

/* --- output --- */

/* Numbers as they were written: 17 digits would show 0.1 as 0.10000000000000001. */
#define CLI_JSON_FLAGS (JSON_ENSURE_ASCII | JSON_REAL_PRECISION(15))

/* Prints `value` and a newline on standard output; takes the reference. NULL (no memory) is an
 * error, remembered for cli_finish(). */
void cli_print_json(json_t *value);

/* Flushes standard output. Returns `status`, or EX_IOERR and a sentence if anything printed so far
 * did not get out. */
int cli_finish(const struct cli *cli, int status);

/* Raises the limit of open files as far as this process may; returns it. */
unsigned cli_raise_file_limit(void);

/* --- progress, on a terminal, for what takes over a second --- */

struct cli_progress {
    uint64_t started_ns;
    uint64_t shown_ns; /* 0 = nothing is on the line */
    bool terminal;
};
void cli_progress_start(struct cli_progress *progress);
/* True when it is time to show something (then call cli_progress_show()). Cheap. */
bool cli_progress_due(struct cli_progress *progress);
void cli_progress_show(struct cli_progress *progress, const char *format, ...) MOB_PRINTF(2, 3);
/* Wipes the line: before anything else is printed, and at the end. */
void cli_progress_clear(struct cli_progress *progress);

/* --- signals --- */

/* From now on SIGINT, SIGTERM, SIGHUP and SIGPIPE remove `path` (relative to `dir_fd`, which must
 * stay open) before they end the process as usual. One at a time. cli_undo_disarm() ends that. */
void cli_undo_arm(int dir_fd, const char *path);
void cli_undo_disarm(void);

/* From now on SIGINT, SIGTERM and SIGHUP are only noted, and wake poll(2) through the descriptor
 * that is returned (never read it dry). SIGPIPE is ignored. A second signal ends the process at
 * once. -1 if there are no descriptors left. */
int cli_catch_signals(void);
/* The signal that was noted, or 0. */
int cli_caught_signal(void);

#endif
