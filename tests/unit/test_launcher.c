/* The launcher: what it starts, how it tells the end, and that nothing of a job outlives it. */
#include "job_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "core/base/util.h"
#include "core/job/launcher.h"
#include "core/job/launcher_client.h"
#include "core/job/process_tree.h"

#define LIMIT_MS 30000

struct fixture {
    int fd; /* the server's end */
    pid_t launcher;
    char directory[64];
};

static void known_none(void *argument, const struct launch_report *report)
{
    (void)argument;
    (void)report;
    fail_msg("a new launcher knows a run");
}

static int start_launcher(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    strcpy(fixture->directory, "/tmp/test_launcher.XXXXXX");
    assert_non_null(mkdtemp(fixture->directory));
    setenv("MOBULA_GRACE_MS", "300", 1);
    fixture->launcher = fork_launcher(&fixture->fd);
    assert_int_equal(launcher_sync(fixture->fd, known_none, NULL, NULL), 0);
    *state = fixture;
    return 0;
}

static int stop_launcher(void **state)
{
    struct fixture *fixture = *state;
    int status;
    char command[128];
    close(fixture->fd); /* nobody holds the other end any more: it ends, and everything with it */
    assert_int_equal(waitpid(fixture->launcher, &status, 0), fixture->launcher);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    snprintf(command, sizeof command, "rm -rf %s", fixture->directory);
    assert_int_equal(system(command), 0);
    free(fixture);
    return 0;
}

/* --- starting --- */

static char *const plain_environment[] = {"PATH=/usr/bin:/bin", "MOBULA_JOB=job-under-test", NULL};

static struct launch_request request_of(struct fixture *fixture, char *const *arguments)
{
    return (struct launch_request){.uid = getuid(),
                                   .gid = getgid(),
                                   .umask = 022,
                                   .groups = &(const uint32_t){0},
                                   .group_count = 0,
                                   .plain_paths = true,
                                   .job = "job-under-test",
                                   .directory = fixture->directory,
                                   .stdin_path = "",
                                   .arguments = arguments,
                                   .environment = plain_environment};
}

static int output_file(void)
{
    int fd = memfd_create("output", MFD_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static void assert_content(int fd, const char *expected)
{
    char buffer[65536];
    ssize_t got = mob_pread_full(fd, buffer, sizeof buffer - 1, 0);
    assert_true(got >= 0);
    buffer[got] = '\0';
    assert_string_equal(buffer, expected);
}

static struct launch_report next_report(struct fixture *fixture)
{
    struct launch_report report;
    for (;;) {
        errint_t error = launcher_next(fixture->fd, &report);
        if (!error)
            return report;
        assert_int_equal(error, -EAGAIN);
        struct pollfd ready = {.fd = fixture->fd, .events = POLLIN};
        assert_int_equal(poll(&ready, 1, LIMIT_MS), 1);
    }
}

/* Runs to the end. */
static struct launch_report run(struct fixture *fixture, const struct launch_request *request,
                                int out)
{
    static uint64_t number = 100;
    cleanup_fd int errors = output_file();
    assert_int_equal(launcher_start(fixture->fd, ++number, 0, 0, request, out, errors), 0);
    struct launch_report report = next_report(fixture);
    assert_int_equal(report.type, LAUNCHED_ENDED);
    assert_int_equal(report.number, number);
    assert_int_equal(launcher_acknowledge(fixture->fd, number, 0), 0);
    return report;
}

static struct launch_report run_shell(struct fixture *fixture, const char *script, int out)
{
    char *arguments[] = {"/bin/sh", "-c", (char *)script, NULL};
    struct launch_request request = request_of(fixture, arguments);
    return run(fixture, &request, out);
}

static void exit_codes_and_signals_are_told(void **state)
{
    cleanup_fd int out = output_file();
    struct launch_report report = run_shell(*state, "echo hello; exit 7", out);
    assert_int_equal(report.stage, LAUNCH_STAGE_NONE);
    assert_true(WIFEXITED(report.status));
    assert_int_equal(WEXITSTATUS(report.status), 7);
    assert_true(report.wall_ns > 0 && report.max_resident_bytes > 0);
    assert_true(report.started_ns > 0 && report.ended_ns >= report.started_ns);
    assert_content(out, "hello\n");
    report = run_shell(*state, "kill -SEGV $$", out);
    assert_true(WIFSIGNALED(report.status));
    assert_int_equal(WTERMSIG(report.status), SIGSEGV);
}

static void a_program_that_cannot_run_is_told_apart(void **state)
{
    struct fixture *fixture = *state;
    char script[128];
    snprintf(script, sizeof script, "%s/script", fixture->directory);
    assert_int_equal(mob_write_file(AT_FDCWD, script, "#!/nowhere/interpreter\n", 23, 0755), 0);
    const struct {
        const char *program;
        enum launch_stage stage;
        int code, exit_code;
    } cases[] = {
        {"no-such-program", LAUNCH_STAGE_NOT_FOUND, ENOENT, 127},
        {"/no/such/program", LAUNCH_STAGE_NOT_FOUND, ENOENT, 127},
        {"/etc/passwd", LAUNCH_STAGE_EXEC, EACCES, 126},
        {"/etc", LAUNCH_STAGE_EXEC, EACCES, 126},
        {"/etc/passwd/x", LAUNCH_STAGE_NOT_FOUND, ENOTDIR, 127},
        {script, LAUNCH_STAGE_INTERPRETER, ENOENT, 127},
    };
    for (int plain = 0; plain < 2; plain++)
        for (size_t i = 0; i < MOB_ARRAY_LENGTH(cases); i++) {
            char *arguments[] = {(char *)cases[i].program, NULL};
            struct launch_request request = request_of(fixture, arguments);
            request.plain_paths = plain;
            cleanup_fd int out = output_file();
            struct launch_report report = run(fixture, &request, out);
            assert_int_equal(report.stage, cases[i].stage);
            assert_int_equal(report.stage_errno, cases[i].code);
            assert_int_equal(WEXITSTATUS(report.status), cases[i].exit_code);
        }
}

static void input_and_directory_are_opened_by_the_child(void **state)
{
    struct fixture *fixture = *state;
    char *arguments[] = {"sh", "-c", "cat; pwd", NULL}, expected[128];
    cleanup_fd int out = output_file();
    struct launch_request request = request_of(fixture, arguments);
    request.stdin_text = "some text\n";
    request.stdin_bytes = strlen(request.stdin_text);
    assert_int_equal(run(fixture, &request, out).status, 0);
    snprintf(expected, sizeof expected, "some text\n%s\n", fixture->directory);
    assert_content(out, expected);
    request = request_of(fixture, arguments);
    request.stdin_path = "/no/such/input";
    assert_int_equal(run(fixture, &request, out).stage, LAUNCH_STAGE_STDIN);
    request = request_of(fixture, arguments);
    request.directory = "/no/such/directory";
    assert_int_equal(run(fixture, &request, out).stage, LAUNCH_STAGE_DIRECTORY);
}

static void a_job_starts_with_a_clean_process(void **state)
{
    struct fixture *fixture = *state;
    cleanup_fd int out = output_file();
    struct launch_report report = run_shell(
        fixture,
        "ls /proc/self/fd | tr '\\n' ' '; umask; cut -d' ' -f5,6 /proc/self/stat | "
        "awk '{print ($1 == $2 ? \"same\" : \"other\")}';"
        "grep -E '^Sig(Blk|Ign)' /proc/$$/status | tr -d '\\n\\t'; cat /proc/self/oom_score_adj;"
        "echo $MOBULA_JOB; readlink /proc/$$/fd/0",
        out);
    assert_int_equal(report.status, 0);
    assert_content(out, "0 1 2 3 0022\nsame\nSigBlk:0000000000000000SigIgn:0000000000000000"
                        "0\njob-under-test\n/dev/null\n");
}

static void a_large_request_goes_through_a_memfd(void **state)
{
    struct fixture *fixture = *state;
    enum { COUNT = 20, LENGTH = 100000 };
    char *arguments[COUNT + 4] = {"sh", "-c", "echo $# ${#1}", "sh"}, *text = malloc(LENGTH + 1);
    memset(text, 'x', LENGTH);
    text[LENGTH] = '\0';
    for (int i = 0; i < COUNT - 1; i++)
        arguments[4 + i] = text;
    cleanup_fd int out = output_file();
    struct launch_request request = request_of(fixture, arguments);
    assert_int_equal(run(fixture, &request, out).status, 0);
    assert_content(out, "19 100000\n");
    free(text);
}

static void a_job_runs_as_its_user(void **state)
{
    struct fixture *fixture = *state;
    if (getuid() != 0)
        skip();
    assert_int_equal(chmod(fixture->directory, 0755), 0);
    char *arguments[] = {"sh", "-c", "id -u; id -g; id -G; grep -c . /etc/shadow", NULL};
    uint32_t groups[] = {65534, 100};
    struct launch_request request = request_of(fixture, arguments);
    request.uid = request.gid = 65534;
    request.groups = groups;
    request.group_count = 2;
    cleanup_fd int out = output_file();
    assert_int_not_equal(run(fixture, &request, out).status, 0);
    assert_content(out, "65534\n65534\n65534 100\n");
}

/* --- trees --- */

/* Whether a process has the words in its command line, other than a shell that was told to look. */
static bool is_running(const char *words)
{
    char command[256];
    snprintf(command, sizeof command,
             "exec 2>/dev/null; for d in /proc/[0-9]*; do tr '\\0' ' ' < $d/cmdline | "
             "grep -q '^sleep %s ' && exit 0; done; exit 1",
             words);
    return system(command) == 0;
}

static void what_a_job_leaves_behind_ends_with_it(void **state)
{
    cleanup_fd int out = output_file();
    /* In its session; in one of its own; in one of its own without the variable; two deep. */
    static const char *const ways[] = {
        "sleep 7001 & exit 3",
        "setsid sleep 7001 & sleep 0.2; exit 3",
        "setsid env -i sleep 7001 & sleep 0.2; exit 3",
        "(setsid sh -c '(setsid sleep 7001 &) ; sleep 7001; true' &) ; sleep 0.2; exit 3",
        "trap '' TERM; (trap '' TERM HUP; sleep 7001; true) & exit 3",
    };
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(ways); i++) {
        struct launch_report report = run_shell(*state, ways[i], out);
        assert_int_equal(WEXITSTATUS(report.status), 3);
        if (is_running("7001"))
            fail_msg("lives on: %s", ways[i]);
    }
}

static void start_shell(struct fixture *fixture, uint64_t number, uint32_t attempt,
                        uint64_t timeout_ns, const char *script)
{
    char *arguments[] = {"/bin/sh", "-c", (char *)script, NULL};
    struct launch_request request = request_of(fixture, arguments);
    cleanup_fd int out = output_file();
    assert_int_equal(
        launcher_start(fixture->fd, number, attempt, timeout_ns, &request, out, out), 0);
}

static void stopping_asks_first_and_kills_after_the_grace(void **state)
{
    struct fixture *fixture = *state;
    start_shell(fixture, 1, 0, 0, "trap 'exit 9' TERM; setsid sleep 7002 & wait");
    usleep(200000);
    assert_int_equal(launcher_stop(fixture->fd, 1, 0, LAUNCH_STOP_CANCEL), 0);
    struct launch_report report = next_report(fixture);
    assert_int_equal(report.stop, LAUNCH_STOP_CANCEL);
    assert_int_equal(WEXITSTATUS(report.status), 9);
    assert_false(is_running("7002"));
    uint64_t begin = mob_monotonic_ns();
    start_shell(fixture, 2, 0, 0, "trap '' TERM; setsid sleep 7002 & sleep 7002; sleep 7002");
    usleep(200000);
    assert_int_equal(launcher_stop(fixture->fd, 2, 0, LAUNCH_STOP_DOWN), 0);
    report = next_report(fixture);
    assert_int_equal(report.stop, LAUNCH_STOP_DOWN);
    assert_int_equal(WTERMSIG(report.status), SIGKILL);
    assert_true(mob_monotonic_ns() - begin >= UINT64_C(490000000));
    assert_false(is_running("7002"));
}

static void a_timeout_needs_no_server(void **state)
{
    struct fixture *fixture = *state;
    uint64_t begin = mob_monotonic_ns();
    start_shell(fixture, 3, 0, UINT64_C(300000000), "sleep 7003");
    struct launch_report report = next_report(fixture);
    assert_int_equal(report.stop, LAUNCH_STOP_TIMEOUT);
    assert_true(WIFSIGNALED(report.status));
    assert_true(mob_monotonic_ns() - begin >= UINT64_C(300000000));
    assert_false(is_running("7003"));
}

static void a_signal_reaches_the_whole_tree(void **state)
{
    struct fixture *fixture = *state;
    start_shell(fixture, 4, 0, 0,
                "trap 'got=1' USR1; sh -c 'trap \"exit 5\" USR1; while :; do sleep 0.05; done' & "
                "wait $!; wait $!; [ $? = 5 ] && [ $got = 1 ] && exit 6");
    usleep(300000);
    assert_int_equal(launcher_signal(fixture->fd, 4, 0, SIGUSR1), 0);
    struct launch_report report = next_report(fixture);
    assert_true(WIFEXITED(report.status) || WTERMSIG(report.status) == SIGUSR1);
    assert_int_equal(report.stop, LAUNCH_STOP_NONE);
}

static void two_jobs_do_not_end_each_other(void **state)
{
    struct fixture *fixture = *state;
    char *environment[] = {"PATH=/usr/bin:/bin", "MOBULA_JOB=the-other-job", NULL};
    char *arguments[] = {"/bin/sh", "-c", "setsid sleep 7004 & (sleep 7004 &); sleep 7004", NULL};
    struct launch_request request = request_of(fixture, arguments);
    request.environment = environment;
    request.job = "the-other-job";
    cleanup_fd int out = output_file();
    assert_int_equal(launcher_start(fixture->fd, 5, 0, 0, &request, out, out), 0);
    usleep(200000);
    for (int i = 0; i < 3; i++)
        run_shell(fixture, "setsid sleep 7001 & sleep 0.1", out);
    assert_false(is_running("7001"));
    assert_true(is_running("7004"));
    assert_int_equal(launcher_stop(fixture->fd, 5, 0, LAUNCH_STOP_CANCEL), 0);
    assert_int_equal(next_report(fixture).number, 5);
    assert_false(is_running("7004"));
}

/* --- a new server --- */

struct known {
    unsigned running, ended;
    int status;
};

static void count_known(void *argument, const struct launch_report *report)
{
    struct known *known = argument;
    known->running += report->type == LAUNCHED_RUNNING;
    known->ended += report->type == LAUNCHED_ENDED;
    if (report->type == LAUNCHED_ENDED)
        known->status = report->status;
}

static void a_new_server_is_told_all_until_it_acknowledges(void **state)
{
    struct fixture *fixture = *state;
    start_shell(fixture, 6, 2, 0, "exit 4");
    start_shell(fixture, 7, 0, 0, "sleep 7005");
    usleep(300000); /* the report of 6 is in the socket now, and nobody has read it */
    for (int server = 0; server < 2; server++) {
        struct known known = {0};
        assert_int_equal(launcher_sync(fixture->fd, count_known, &known, NULL), 0);
        assert_int_equal(known.running, 1);
        assert_int_equal(known.ended, 1);
        assert_int_equal(WEXITSTATUS(known.status), 4);
    }
    assert_int_equal(launcher_acknowledge(fixture->fd, 6, 1), 0); /* another attempt: not this */
    struct known known = {0};
    assert_int_equal(launcher_sync(fixture->fd, count_known, &known, NULL), 0);
    assert_int_equal(known.ended, 1);
    assert_int_equal(launcher_acknowledge(fixture->fd, 6, 2), 0);
    known = (struct known){0};
    assert_int_equal(launcher_sync(fixture->fd, count_known, &known, NULL), 0);
    assert_int_equal(known.ended, 0);
    assert_int_equal(known.running, 1);
}

static void nothing_lives_on_when_every_server_is_gone(void **state)
{
    struct fixture *fixture = *state;
    start_shell(fixture, 8, 0, 0, "setsid env -i sleep 7006 & sleep 7006");
    usleep(300000);
    assert_true(is_running("7006"));
    stop_launcher(state);
    assert_false(is_running("7006"));
    start_launcher(state);
}

static void nonsense_from_a_server_is_refused(void **state)
{
    struct fixture *fixture = *state;
    uint8_t junk[3000];
    for (size_t i = 0; i < sizeof junk; i++)
        junk[i] = (uint8_t)(i * 37);
    for (size_t bytes = 1; bytes < sizeof junk; bytes += 97)
        assert_int_equal(send(fixture->fd, junk, bytes, 0), bytes);
    /* A request whose body lies about its lengths, at every byte. */
    char *arguments[] = {"/bin/true", NULL};
    struct launch_request request = request_of(fixture, arguments);
    uint8_t *body;
    size_t bytes;
    assert_int_equal(launch_request_encode(&request, &body, &bytes), 0);
    for (size_t i = 0; i < bytes; i++)
        for (int bit = 0; bit < 8; bit += 7) {
            struct launch_request read;
            body[i] ^= (uint8_t)(1 << bit);
            if (!launch_request_decode(body, bytes, &read))
                launch_request_free(&read);
            body[i] ^= (uint8_t)(1 << bit);
        }
    for (size_t cut = 0; cut < bytes; cut++) {
        struct launch_request read;
        uint8_t *exact = malloc(cut ? cut : 1);
        memcpy(exact, body, cut);
        assert_int_equal(launch_request_decode(exact, cut, &read), -EBADMSG);
        free(exact);
    }
    free(body);
    /* A run without descriptors ends at once, told as any other. */
    struct launch_command command = {
        .magic = LAUNCH_MAGIC, .type = LAUNCH_RUN, .number = 9, .body_bytes = 0};
    assert_int_equal(send(fixture->fd, &command, sizeof command, 0), sizeof command);
    struct launch_report report = next_report(fixture);
    assert_int_equal(report.stage, LAUNCH_STAGE_FORK);
    cleanup_fd int out = output_file();
    assert_int_equal(run_shell(fixture, "exit 0", out).status, 0);
}

static void a_scan_from_a_pid_sees_what_a_whole_scan_sees(void **state)
{
    (void)state;
    struct process_scanner scanner;
    struct process_table all = {0}, newer = {0};
    assert_int_equal(process_scanner_open(&scanner), 0);
    assert_true(scanner.offset >= 0); /* this kernel's directory can be entered at a pid */
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    assert_int_equal(process_scan(&scanner, 1, INT_MAX, &all), 0);
    assert_int_equal(process_scan(&scanner, child, INT_MAX, &newer), 0);
    assert_true(newer.count >= 1 && newer.count < all.count);
    assert_int_equal(newer.entries[0].pid, child);
    assert_int_equal(newer.entries[0].parent, getpid());
    assert_int_equal(process_scan(&scanner, child, child, &newer), 0);
    assert_int_equal(newer.count, 1);
    for (size_t i = 0; i < all.count; i++)
        all.entries[i].marked = all.entries[i].pid == getpid();
    process_mark_descendants(&all);
    bool found = false;
    for (size_t i = 0; i < all.count; i++)
        found |= all.entries[i].pid == child && all.entries[i].marked;
    assert_true(found);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    process_table_free(&all);
    process_table_free(&newer);
    process_scanner_close(&scanner);
}

#define LAUNCHER_TEST(test) cmocka_unit_test_setup_teardown(test, start_launcher, stop_launcher)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LAUNCHER_TEST(exit_codes_and_signals_are_told),
        LAUNCHER_TEST(a_program_that_cannot_run_is_told_apart),
        LAUNCHER_TEST(input_and_directory_are_opened_by_the_child),
        LAUNCHER_TEST(a_job_starts_with_a_clean_process),
        LAUNCHER_TEST(a_large_request_goes_through_a_memfd),
        LAUNCHER_TEST(a_job_runs_as_its_user),
        LAUNCHER_TEST(what_a_job_leaves_behind_ends_with_it),
        LAUNCHER_TEST(stopping_asks_first_and_kills_after_the_grace),
        LAUNCHER_TEST(a_timeout_needs_no_server),
        LAUNCHER_TEST(a_signal_reaches_the_whole_tree),
        LAUNCHER_TEST(two_jobs_do_not_end_each_other),
        LAUNCHER_TEST(a_new_server_is_told_all_until_it_acknowledges),
        LAUNCHER_TEST(nothing_lives_on_when_every_server_is_gone),
        LAUNCHER_TEST(nonsense_from_a_server_is_refused),
        cmocka_unit_test(a_scan_from_a_pid_sees_what_a_whole_scan_sees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
