/* Options, exit codes, output and progress: what every subcommand shares. */
#include "tools/cli_common.h"

#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>

/* Set when a JSON value could not be made or printed. */
static bool output_failed;

static void print_sentence(const struct cli *cli, const char *format, va_list args)
{
    fflush(stdout);
    flockfile(stderr);
    fprintf(stderr, "mobula%s%s: ", cli->command ? " " : "",
            cli->command ? cli->command->name : "");
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    funlockfile(stderr);
}

int cli_fail(const struct cli *cli, int status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_sentence(cli, format, args);
    va_end(args);
    return status;
}

void cli_note(const struct cli *cli, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_sentence(cli, format, args);
    va_end(args);
}

void cli_usage(const struct cli *cli, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_sentence(cli, format, args);
    va_end(args);
    fprintf(stderr, "Try 'mobula%s%s --help'.\n", cli->command ? " " : "",
            cli->command ? cli->command->name : "");
    exit(EX_USAGE);
}

int cli_status(errint_t code)
{
    switch (-code) {
    case 0:
        return EX_OK;
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
        return EX_NOINPUT;
    case EACCES:
    case EPERM:
    case EROFS:
        return EX_NOPERM;
    case EINVAL:
    case EILSEQ:
        return EX_DATAERR;
    case EIO:
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EPIPE:
        return EX_IOERR;
    case ETIME:
    case EAGAIN:
    case EBUSY:
        return EX_TEMPFAIL;
    case EEXIST:
    case ENOTEMPTY:
        return EX_CANTCREAT;
    case ENOMEM:
    case EMFILE:
    case ENFILE:
        return EX_OSERR;
    default:
        return EX_UNAVAILABLE;
    }
}

const char *cli_errno_text(errint_t code)
{
    return strerror(-code);
}

int cli_report(const struct cli *cli, const struct mob_error *err)
{
    char sentence[sizeof err->message + 160];
    return cli_fail(cli, cli_status(err->code), "%s",
                    mob_error_format(err, sentence, sizeof sentence));
}

/* --- options --- */

static const struct option *find_long(const struct option *longs, int value)
{
    for (; longs->name; longs++)
        if (longs->val == value)
            return longs;
    return NULL;
}

/* Says what is wrong with the option that getopt_long() has just refused. */
__attribute__((noreturn)) static void refuse_option(const struct cli *cli, char **argv, int problem,
                                                    const struct option *longs)
{
    const char *word = argv[optind - 1];
    bool is_long = word && !strncmp(word, "--", 2);
    const struct option *known = optopt ? find_long(longs, optopt) : NULL;
    if (problem == ':' && known && (is_long || optopt > UCHAR_MAX))
        cli_usage(cli, "option '--%s' needs a value", known->name);
    if (problem == ':')
        cli_usage(cli, "option '-%c' needs a value", optopt);
    if (optopt && known && is_long)
        cli_usage(cli, "option '--%s' takes no value", known->name);
    if (optopt)
        cli_usage(cli, "unknown option '-%c'", optopt);
    cli_usage(cli, "unknown option '%s'", word ? word : "");
}

int cli_getopt(struct cli *cli, int argc, char **argv, const char *shorts,
               const struct option *longs)
{
    /* '+' must come first, then ':' so that a missing value is told apart from an unknown option.
     */
    char all[64];
    bool in_order = *shorts == '+';
    snprintf(all, sizeof all, "%s:h%s", in_order ? "+" : "", shorts + in_order);
    opterr = 0;
    for (;;) {
        int option = getopt_long(argc, argv, all, longs, NULL);
        switch (option) {
        case 'h':
            fputs(cli->command->help, stdout);
            exit(cli_finish(cli, EX_OK));
        case CLI_OPTION_MOUNT:
            cli->mount_option = optarg;
            break;
        case CLI_OPTION_JSON:
            cli->json = true;
            break;
        case '?':
        case ':':
            refuse_option(cli, argv, option, longs);
        default:
            return option;
        }
    }
}

uint64_t cli_parse_count(const struct cli *cli, const char *option, const char *text,
                         uint64_t least, uint64_t most)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value < least || value > most)
        cli_usage(cli, "%s: '%s' is no number from %llu to %llu", option, text,
                  (unsigned long long)least, (unsigned long long)most);
    return value;
}

uint64_t cli_parse_duration(const struct cli *cli, const char *option, const char *text)
{
    struct mob_error err = {0};
    uint64_t ns = 0;
    if (mob_parse_duration(text, &ns, &err))
        cli_usage(cli, "%s: %s", option, err.message);
    return ns;
}

double cli_parse_cpus(const struct cli *cli, const char *option, const char *text)
{
    char *end;
    double value = strtod(text, &end);
    bool plain = text[strspn(text, "0123456789.")] == '\0' && *text;
    if (!plain || *end || !isfinite(value) || value <= 0 || value > 65536)
        cli_usage(cli, "%s: '%s' is no number of CPUs: expected one above 0, such as 2 or 0.5",
                  option, text);
    return value;
}

void cli_check_name(const struct cli *cli, const char *name)
{
    if (!*name || *name == '/')
        cli_usage(cli, "--name: expected a name inside the mount's directory, not '%s'", name);
    for (const char *part = name; *part;) {
        size_t length = strcspn(part, "/");
        if ((length == 1 && part[0] == '.') || (length == 2 && !strncmp(part, "..", 2)))
            cli_usage(cli, "--name: '%s' must not have '.' or '..' in it", name);
        part += length + (part[length] == '/');
    }
}

uint64_t cli_deadline(uint64_t duration_ns)
{
    uint64_t now = mob_monotonic_ns();
    return duration_ns >= CLI_NO_DEADLINE - now ? CLI_NO_DEADLINE : now + duration_ns;
}

int cli_poll_ms(uint64_t deadline, int most_ms)
{
    if (deadline == CLI_NO_DEADLINE)
        return most_ms;
    uint64_t now = mob_monotonic_ns();
    if (now >= deadline)
        return 0;
    uint64_t left_ms = (deadline - now) / 1000000 + 1;
    return left_ms < (uint64_t)most_ms ? (int)left_ms : most_ms;
}

/* --- output --- */

void cli_print_json(json_t *value)
{
    if (!value || json_dumpf(value, stdout, CLI_JSON_FLAGS | JSON_INDENT(2)))
        output_failed = true;
    else
        putchar('\n');
    json_decref(value);
}

int cli_finish(const struct cli *cli, int status)
{
    errno = 0;
    bool failed = fflush(stdout) || ferror(stdout);
    if (failed)
        return cli_fail(cli, EX_IOERR, "cannot write to standard output: %s",
                        errno ? strerror(errno) : "write error");
    if (output_failed)
        return cli_fail(cli, EX_OSERR, "cannot make JSON: no memory, or a text that is not UTF-8");
    return status;
}

unsigned cli_raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit))
        return 1024;
    if (limit.rlim_cur < limit.rlim_max) {
        struct rlimit raised = {.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
        if (!setrlimit(RLIMIT_NOFILE, &raised))
            limit = raised;
    }
    return limit.rlim_cur > UINT_MAX ? UINT_MAX : (unsigned)limit.rlim_cur;
}

/* --- progress --- */

enum { PROGRESS_AFTER_NS = 1000000000, PROGRESS_EVERY_NS = 200000000 };

void cli_progress_start(struct cli_progress *progress)
{
    *progress =
        (struct cli_progress){.started_ns = mob_monotonic_ns(), .terminal = isatty(STDERR_FILENO)};
}

bool cli_progress_due(struct cli_progress *progress)
{
    if (!progress->terminal)
        return false;
    uint64_t now = mob_monotonic_ns();
    if (now - progress->started_ns < PROGRESS_AFTER_NS)
        return false;
    return !progress->shown_ns || now - progress->shown_ns >= PROGRESS_EVERY_NS;
}

void cli_progress_show(struct cli_progress *progress, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputc('\r', stderr);
    vfprintf(stderr, format, args);
    fputs("\033[K", stderr);
    fflush(stderr);
    va_end(args);
    progress->shown_ns = mob_monotonic_ns();
}

void cli_progress_clear(struct cli_progress *progress)
{
    if (!progress->shown_ns)
        return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    progress->shown_ns = 0;
}
