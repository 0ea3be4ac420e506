/* The FUSE transport on a real mount, over io_uring and over /dev/fuse, and over the death of
 * servers. The test process is the keeper; servers are its children, with the filesystem of
 * transport_testfs.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <time.h>

#include "core/base/util.h"
#include "tests/unit/transport_testfs.h"

#define ENABLE_URING "/sys/module/fuse/parameters/enable_uring"

struct rig {
    enum transport_kind kind;
    struct session *session;
    struct testfs_shared *shared;
    int fd;
    pid_t server;
    pid_t watchdog;
    char mountpoint[64];
    char backing_dir[64];
};

static const char *what_is_tested; /* for the watchdog's message */

/* --- servers --- */

static struct transport *serving;

static void on_terminate(int signal_number)
{
    (void)signal_number;
    transport_stop(serving);
}

/* The child's life. Exit status 0: served until the mount went or it was asked to stop. */
static void run_server(struct rig *rig)
{
    static struct testfs fs; /* large */
    struct mob_error error;
    fs.shared = rig->shared;
    fs.backing_dir = rig->backing_dir;
    pthread_mutex_init(&fs.lock, NULL);
    struct transport_options options = {
        .fd = rig->fd, .session = rig->session, .kind = rig->kind, .want_passthrough = true};
    if (transport_create(&options, &testfs_ops, sizeof(testfs_ops), &fs, &fs.transport, &error)) {
        fprintf(stderr, "transport_create: %s\n", error.message);
        _exit(2);
    }
    serving = fs.transport;
    signal(SIGTERM, on_terminate);
    if (transport_serve(fs.transport, &error)) {
        fprintf(stderr, "transport_serve: %s\n", error.message);
        _exit(3);
    }
    if (transport_kind(fs.transport) != rig->kind)
        _exit(4);
    transport_destroy(fs.transport);
    _exit(0);
}

static void start_server(struct rig *rig)
{
    fflush(NULL);
    rig->server = fork();
    assert_true(rig->server >= 0);
    if (rig->server == 0)
        run_server(rig);
}

static int wait_for(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void kill_server(struct rig *rig)
{
    kill(rig->server, SIGKILL);
    wait_for(rig->server);
    session_next_generation(rig->session);
}

/* --- the rig --- */

/* If the mount hangs, ends the connection, so that the test fails instead. */
static pid_t start_watchdog(const struct rig *rig)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct sigaction action = {.sa_handler = SIG_DFL};
        sigaction(SIGTERM, &action, NULL);
        sleep(90);
        fprintf(stderr, "watchdog: %s hangs: unmounting\n", what_is_tested);
        umount2(rig->mountpoint, MNT_FORCE | MNT_DETACH);
        kill(rig->server, SIGKILL);
        _exit(1);
    }
    return pid;
}

static int set_up(void **state, enum transport_kind kind)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct mob_error error = {0};
    rig->kind = kind;
    strcpy(rig->mountpoint, "/tmp/mobula-test-mount-XXXXXX");
    strcpy(rig->backing_dir, "/dev/shm/mobula-test-backing-XXXXXX");
    assert_non_null(mkdtemp(rig->mountpoint));
    assert_non_null(mkdtemp(rig->backing_dir));
    assert_int_equal(session_create(sizeof(struct testfs_shared), &rig->session, &error), 0);
    rig->shared = session_handle_area(rig->session, NULL);
    struct mount_options options = {rig->mountpoint, "mobula", true};
    if (transport_mount(&options, &rig->fd, &error))
        fail_msg("%s", error.message);
    start_server(rig);
    rig->watchdog = start_watchdog(rig);
    *state = rig;
    return 0;
}

static int set_up_ring(void **state)
{
    return set_up(state, TRANSPORT_RING);
}

static int set_up_device(void **state)
{
    return set_up(state, TRANSPORT_DEVICE);
}

static int tear_down(void **state)
{
    struct rig *rig = *state;
    char command[128];
    umount2(rig->mountpoint, MNT_FORCE | MNT_DETACH); /* nobody stays hung if a test failed */
    if (rig->server > 0) {
        kill(rig->server, SIGKILL);
        waitpid(rig->server, NULL, 0);
    }
    kill(rig->watchdog, SIGKILL);
    waitpid(rig->watchdog, NULL, 0);
    close(rig->fd);
    session_destroy(rig->session);
    rmdir(rig->mountpoint);
    snprintf(command, sizeof(command), "rm -rf %s", rig->backing_dir);
    assert_int_equal(system(command), 0);
    free(rig);
    return 0;
}

static const char *path_of(const struct rig *rig, const char *format, ...)
{
    static _Thread_local char path[4][160];
    static _Thread_local unsigned next;
    char *out = path[next++ % 4];
    int length = snprintf(out, sizeof(path[0]), "%s/", rig->mountpoint);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(out + length, sizeof(path[0]) - (size_t)length, format, arguments);
    va_end(arguments);
    return out;
}

/* Waits up to 20 s for a counter that servers write. */
static bool comes_to(_Atomic unsigned *counter, unsigned value)
{
    for (int i = 0; i < 20000 && atomic_load(counter) != value; i++)
        usleep(1000);
    return atomic_load(counter) == value;
}

static void release(struct rig *rig, unsigned number)
{
    int fd = open(path_of(rig, "release-%u", number), O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "x", 1), 1);
    close(fd);
}

/* --- a client of its own, which opens and reports how that ended --- */

static void on_client_signal(int signal_number)
{
    (void)signal_number;
}

/* Exit status: 0 if it could open, else the errno. */
static pid_t open_in_child(struct rig *rig, unsigned number)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(rig->fd);
        struct sigaction action = {.sa_handler = on_client_signal};
        sigaction(SIGUSR1, &action, NULL);
        int fd = open(path_of(rig, "wait-%u", number), O_RDONLY);
        _exit(fd >= 0 ? 0 : errno);
    }
    return pid;
}

static int exit_of(pid_t pid)
{
    int status = wait_for(pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* --- serving --- */

static void files_can_be_made_written_read_and_removed(void **state)
{
    struct rig *rig = *state;
    struct stat st;
    char large[300000];
    memset(large, 'l', sizeof(large));
    int fd = open(path_of(rig, "f1"), O_CREAT | O_WRONLY | O_TRUNC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, large, sizeof(large)), sizeof(large));
    assert_int_equal(write(fd, "z", 1), 1);
    assert_int_equal(close(fd), 0);
    assert_int_equal(stat(path_of(rig, "f1"), &st), 0);
    assert_int_equal(st.st_size, sizeof(large) + 1);

    fd = open(path_of(rig, "f1"), O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, large, 10, sizeof(large)), 1);
    assert_int_equal(large[0], 'z');
    assert_int_equal(pread(fd, large, sizeof(large), 0), sizeof(large));
    close(fd);
    assert_int_equal(unlink(path_of(rig, "f1")), 0);
    assert_int_equal(stat(path_of(rig, "f1"), &st), -1);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(open(path_of(rig, "nothing"), O_RDONLY), -1);
    assert_int_equal(errno, ENOENT);
}

static void the_mount_is_of_type_fuse_mobula(void **state)
{
    struct rig *rig = *state;
    char line[1024];
    bool found = false;
    FILE *file = fopen("/proc/self/mountinfo", "r");
    assert_non_null(file);
    while (fgets(line, sizeof(line), file))
        found = found || (strstr(line, rig->mountpoint) && strstr(line, " - fuse.mobula mobula "));
    fclose(file);
    assert_true(found);
}

static void a_parked_open_is_answered_by_another_thread(void **state)
{
    struct rig *rig = *state;
    pid_t client = open_in_child(rig, 1);
    assert_true(comes_to(&rig->shared->parked, 1));
    assert_int_equal(waitpid(client, NULL, WNOHANG), 0);
    release(rig, 1);
    assert_int_equal(exit_of(client), 0);
}

static void a_signal_ends_a_parked_open_with_EINTR(void **state)
{
    struct rig *rig = *state;
    pid_t client = open_in_child(rig, 2);
    assert_true(comes_to(&rig->shared->parked, 1));
    kill(client, SIGUSR1);
    assert_int_equal(exit_of(client), EINTR);
    assert_true(comes_to(&rig->shared->parked, 0));
}

struct opener {
    pthread_t thread;
    struct rig *rig;
    unsigned number;
    int core;
    int result;
};

static void *opener_thread(void *argument)
{
    struct opener *opener = argument;
    if (opener->core >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((unsigned)opener->core, &set);
        sched_setaffinity(0, sizeof(set), &set);
    }
    int fd = open(path_of(opener->rig, "wait-%u", opener->number), O_RDONLY);
    opener->result = fd >= 0 ? 0 : errno;
    if (fd >= 0)
        close(fd);
    return NULL;
}

/* A process whose threads open wait-0 .. wait-(count - 1), on `core` unless that is negative. (Not
 * threads of the test itself, which is to fork servers.) */
static pid_t start_openers(struct rig *rig, unsigned count, int core)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid)
        return pid;
    struct opener *openers = calloc(count, sizeof(*openers));
    pthread_attr_t small;
    int failures = 0;
    close(rig->fd);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    for (unsigned i = 0; i < count; i++) {
        openers[i] = (struct opener){.rig = rig, .number = i, .core = core};
        if (pthread_create(&openers[i].thread, &small, opener_thread, &openers[i]))
            _exit(2);
    }
    for (unsigned i = 0; i < count; i++) {
        pthread_join(openers[i].thread, NULL);
        failures += openers[i].result != 0;
    }
    _exit(failures != 0);
}

static void three_thousand_opens_can_wait_while_others_go_on(void **state)
{
    struct rig *rig = *state;
    enum { COUNT = 3000 };
    pid_t openers = start_openers(rig, COUNT, -1);
    assert_true(comes_to(&rig->shared->parked, COUNT));
    for (int i = 0; i < 20; i++)
        files_can_be_made_written_read_and_removed(state);
    for (unsigned i = 0; i < COUNT; i++)
        release(rig, i);
    assert_int_equal(exit_of(openers), 0);
    assert_int_equal(atomic_load(&rig->shared->parked), 0);
}

/* More at once than there are entries, all on one core, and nothing else on it: the kernel must be
 * made to look for those that wait for an entry. */
static void a_burst_of_opens_on_one_core_arrives_whole(void **state)
{
    struct rig *rig = *state;
    enum { COUNT = 300 };
    pid_t openers = start_openers(rig, COUNT, 0);
    assert_true(comes_to(&rig->shared->parked, COUNT));
    for (unsigned i = 0; i < COUNT; i++)
        release(rig, i);
    assert_int_equal(exit_of(openers), 0);
}

/* --- passthrough --- */

static void passthrough_reads_and_writes_reach_the_backing_file(void **state)
{
    struct rig *rig = *state;
    char path[100];
    char text[32] = {0};
    snprintf(path, sizeof(path), "%s/7", rig->backing_dir);
    int fd = open(path, O_CREAT | O_RDWR, 0600);
    assert_int_equal(write(fd, "seven", 5), 5);
    close(fd);
    fd = open(path_of(rig, "pass-7"), O_RDWR);
    if (fd < 0 && errno == EPERM)
        skip();
    assert_true(fd >= 0);
    assert_int_equal(read(fd, text, sizeof(text)), 5);
    assert_string_equal(text, "seven");
    assert_int_equal(pwrite(fd, "S", 1, 0), 1);
    close(fd);

    fd = open(path_of(rig, "pass-8"), O_CREAT | O_RDWR | O_EXCL, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "eight", 5), 5);
    close(fd);
    snprintf(path, sizeof(path), "%s/8", rig->backing_dir);
    fd = open(path, O_RDONLY);
    memset(text, 0, sizeof(text));
    assert_int_equal(read(fd, text, sizeof(text)), 5);
    assert_string_equal(text, "eight");
    close(fd);
    snprintf(path, sizeof(path), "%s/7", rig->backing_dir);
    fd = open(path, O_RDONLY);
    assert_int_equal(read(fd, text, 1), 1);
    assert_int_equal(text[0], 'S');
    close(fd);
}

static void a_passthrough_file_stays_open_over_a_kill(void **state)
{
    struct rig *rig = *state;
    char text[8] = {0};
    int fd = open(path_of(rig, "pass-9"), O_CREAT | O_RDWR, 0644);
    if (fd < 0 && errno == EPERM)
        skip();
    assert_int_equal(write(fd, "nine", 4), 4);
    kill_server(rig);
    assert_int_equal(pread(fd, text, 4, 0), 4); /* while nobody serves */
    assert_string_equal(text, "nine");
    start_server(rig);
    close(fd);
}

/* --- the death of servers --- */

static void opens_that_wait_are_answered_by_the_successor(void **state)
{
    struct rig *rig = *state;
    enum { COUNT = 200 };
    pid_t openers = start_openers(rig, COUNT, -1);
    assert_true(comes_to(&rig->shared->parked, COUNT));
    for (int i = 0; i < 3; i++) {
        atomic_store(&rig->shared->parked, 0);
        kill_server(rig);
        start_server(rig);
        assert_true(comes_to(&rig->shared->parked, COUNT));
    }
    for (unsigned i = 0; i < COUNT; i++)
        release(rig, i);
    assert_int_equal(exit_of(openers), 0);
    assert_int_equal(atomic_load(&rig->shared->answered_twice), 0);
}

static void a_signal_ends_an_open_that_the_successor_took_over(void **state)
{
    struct rig *rig = *state;
    pid_t client = open_in_child(rig, 3);
    assert_true(comes_to(&rig->shared->parked, 1));
    atomic_store(&rig->shared->parked, 0);
    kill_server(rig);
    start_server(rig);
    assert_true(comes_to(&rig->shared->parked, 1));
    kill(client, SIGUSR1);
    assert_int_equal(exit_of(client), EINTR);
}

static void what_comes_while_nobody_serves_is_served_later(void **state)
{
    struct rig *rig = *state;
    enum { COUNT = 40 };
    files_can_be_made_written_read_and_removed(state);
    kill_server(rig);
    pid_t openers = start_openers(rig, COUNT, 0);
    usleep(50000);
    start_server(rig);
    assert_true(comes_to(&rig->shared->parked, COUNT));
    for (unsigned i = 0; i < COUNT; i++)
        release(rig, i);
    assert_int_equal(exit_of(openers), 0);
}

/* Nothing that could be kicked with: no file had been looked at before. */
static void what_comes_is_served_though_nothing_had_come_before(void **state)
{
    struct rig *rig = *state;
    enum { COUNT = 40 };
    struct stat st;
    assert_int_equal(stat(rig->mountpoint, &st), 0);
    kill_server(rig);
    pid_t openers = start_openers(rig, COUNT, 0);
    usleep(50000);
    start_server(rig);
    assert_true(comes_to(&rig->shared->parked, COUNT));
    for (unsigned i = 0; i < COUNT; i++)
        release(rig, i);
    assert_int_equal(exit_of(openers), 0);
}

struct load {
    _Atomic uint64_t operations;
    _Atomic bool stop;
    char failure[100];
};

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            snprintf(load->failure, sizeof(load->failure), "%s: %s", #condition, strerror(errno)); \
            _exit(1);                                                                              \
        }                                                                                          \
        atomic_fetch_add(&load->operations, 1);                                                    \
    } while (0)

static void load_client(struct rig *rig, struct load *load, unsigned number)
{
    char bytes[4096];
    struct stat st;
    unsigned seed = number;
    close(rig->fd);
    for (unsigned i = 0; !atomic_load(&load->stop); i++) {
        const char *path = path_of(rig, "f%u", number * 1000 + i % 1000);
        size_t size = 1 + (size_t)rand_r(&seed) % sizeof(bytes);
        memset(bytes, (int)i, size);
        if (i % 2)
            usleep((unsigned)rand_r(&seed) % 200);
        int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0644);
        EXPECT(fd >= 0);
        EXPECT(write(fd, bytes, size) == (ssize_t)size);
        EXPECT(close(fd) == 0);
        fd = open(path, O_RDONLY);
        EXPECT(fd >= 0);
        EXPECT(fstat(fd, &st) == 0 && (size_t)st.st_size == size);
        EXPECT(read(fd, bytes, sizeof(bytes)) == (ssize_t)size);
        EXPECT((unsigned char)bytes[size - 1] == (unsigned char)i);
        close(fd);
        EXPECT(stat(path_of(rig, "zero"), &st) == 0);
        EXPECT(unlink(path) == 0);
    }
    _exit(0);
}

static void thirty_kills_under_load_are_not_noticed(void **state)
{
    struct rig *rig = *state;
    enum { CLIENTS = 2, KILLS = 30 };
    struct load *loads = mmap(NULL, CLIENTS * sizeof(*loads), PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t clients[CLIENTS];
    for (unsigned i = 0; i < CLIENTS; i++) {
        clients[i] = fork();
        if (clients[i] == 0)
            load_client(rig, &loads[i], i + 1);
    }
    unsigned seed = (unsigned)getpid();
    for (int i = 0; i < KILLS; i++) {
        usleep(20000 + (unsigned)rand_r(&seed) % 5000);
        kill_server(rig);
        start_server(rig);
        for (unsigned k = 0; k < CLIENTS; k++) {
            uint64_t before = atomic_load(&loads[k].operations);
            int patience = 5000;
            while (atomic_load(&loads[k].operations) < before + 2 && --patience &&
                   !loads[k].failure[0])
                usleep(1000);
            assert_string_equal(loads[k].failure, "");
            assert_int_not_equal(patience, 0);
        }
    }
    for (unsigned i = 0; i < CLIENTS; i++) {
        atomic_store(&loads[i].stop, true);
        assert_int_equal(exit_of(clients[i]), 0);
    }
    assert_int_equal(atomic_load(&rig->shared->answered_twice), 0);
    munmap(loads, CLIENTS * sizeof(*loads));
}

/* --- ends --- */

static void unmounting_ends_serving(void **state)
{
    struct rig *rig = *state;
    struct mob_error error = {0};
    files_can_be_made_written_read_and_removed(state);
    assert_int_equal(transport_unmount(rig->mountpoint, false, &error), 0);
    assert_int_equal(exit_of(rig->server), 0);
    rig->server = 0;
}

static void stopping_hands_over_to_the_next_server(void **state)
{
    struct rig *rig = *state;
    pid_t client = open_in_child(rig, 4);
    assert_true(comes_to(&rig->shared->parked, 1));
    atomic_store(&rig->shared->parked, 0);
    kill(rig->server, SIGTERM);
    assert_int_equal(exit_of(rig->server), 0);
    start_server(rig);
    assert_true(comes_to(&rig->shared->parked, 1));
    release(rig, 4);
    assert_int_equal(exit_of(client), 0);
}

/* A process that looks after waiting requests may be on the mount still (ring_kick_from_outside()). */
static int umount_when_idle(const char *mountpoint)
{
    int failed;
    for (int tries = 0; (failed = umount2(mountpoint, 0)) && errno == EBUSY && tries < 5000; tries++)
        usleep(1000);
    return failed;
}

static void a_refusing_keeper_answers_EIO_to_new_and_old(void **state)
{
    struct rig *rig = *state;
    pid_t client = open_in_child(rig, 5);
    assert_true(comes_to(&rig->shared->parked, 1));
    kill_server(rig);
    rig->server = fork();
    if (rig->server == 0)
        _exit(transport_refuse_session(rig->fd, rig->session, NULL) ? 1 : 0);
    assert_int_equal(exit_of(client), EIO);
    assert_int_equal(open(path_of(rig, "zero"), O_RDONLY), -1);
    assert_int_equal(errno, EIO);
    assert_int_equal(umount_when_idle(rig->mountpoint), 0);
    assert_int_equal(exit_of(rig->server), 0);
    rig->server = 0;
}

static void a_mountpoint_that_is_missing_is_named(void **state)
{
    (void)state;
    struct mob_error error = {0};
    struct mount_options options = {"/nowhere/at/all", "mobula", true};
    int fd;
    assert_int_equal(transport_mount(&options, &fd, &error), -ENOENT);
    assert_non_null(strstr(error.message, "/nowhere/at/all"));
    options.mountpoint = "/dev/null";
    assert_int_equal(transport_mount(&options, &fd, &error), -ENOTDIR);
    assert_int_equal(transport_unmount("/nowhere/at/all", false, &error), -ENOENT);
}

#define BOTH(test)                                                                                 \
    {#test " (ring)", test, set_up_ring, tear_down, NULL},                                         \
    {                                                                                              \
#test " (device)", test, set_up_device, tear_down, NULL                                    \
    }

/* True if the ring can be had; turns it on for the time of the test. */
static bool turn_ring_on(bool *was_off)
{
    char value = 0;
    int fd = open(ENABLE_URING, O_RDWR);
    *was_off = false;
    if (fd < 0)
        return false;
    if (read(fd, &value, 1) == 1 && value != 'Y') {
        *was_off = true;
        value = pwrite(fd, "Y", 1, 0) == 1 ? 'Y' : 'N';
    }
    close(fd);
    return value == 'Y';
}

static void turn_ring_off(void)
{
    int fd = open(ENABLE_URING, O_WRONLY);
    if (fd >= 0 && write(fd, "N", 1) != 1)
        perror(ENABLE_URING);
    if (fd >= 0)
        close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(files_can_be_made_written_read_and_removed),
        BOTH(the_mount_is_of_type_fuse_mobula),
        BOTH(a_parked_open_is_answered_by_another_thread),
        BOTH(a_signal_ends_a_parked_open_with_EINTR),
        BOTH(three_thousand_opens_can_wait_while_others_go_on),
        BOTH(a_burst_of_opens_on_one_core_arrives_whole),
        BOTH(passthrough_reads_and_writes_reach_the_backing_file),
        BOTH(a_passthrough_file_stays_open_over_a_kill),
        BOTH(opens_that_wait_are_answered_by_the_successor),
        BOTH(a_signal_ends_an_open_that_the_successor_took_over),
        BOTH(what_comes_while_nobody_serves_is_served_later),
        BOTH(what_comes_is_served_though_nothing_had_come_before),
        BOTH(thirty_kills_under_load_are_not_noticed),
        BOTH(unmounting_ends_serving),
        BOTH(stopping_hands_over_to_the_next_server),
        BOTH(a_refusing_keeper_answers_EIO_to_new_and_old),
        cmocka_unit_test(a_mountpoint_that_is_missing_is_named),
    };
    bool was_off;
    what_is_tested = "a test of the transport";
    if (geteuid() != 0 || access("/dev/fuse", R_OK | W_OK) != 0)
        return 77;
    if (!turn_ring_on(&was_off)) {
        fprintf(stderr, "no FUSE over io_uring here: only /dev/fuse is tested\n");
        cmocka_set_test_filter("*(device)");
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (was_off)
        turn_ring_off();
    return failed;
}
