/* The launcher's loop: commands in, processes started and reaped, reports out.
 *
 * The end of a job is the end of its tree. The launcher is a child subreaper, so whatever a job
 * leaves behind becomes its child; whose it was is told by session, by descent, by MOBULA_JOB in
 * the environment, and for one that has shed all three by age: one that is older than every other
 * run there is can't be another's. */
#include "core/job/launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include "core/base/id.h"
#include "core/base/log.h"
#include "core/base/util.h"
#include "core/job/launch_protocol.h"
#include "core/job/launcher_child.h"
#include "core/job/process_tree.h"

#define SLOT_COUNT 65536u
#define BUCKETS 4096u
#define PACKET_LIMIT (sizeof(struct launch_command) + LAUNCH_INLINE_LIMIT)
#define SECOND_NS UINT64_C(1000000000)
#define KILL_AGAIN_NS UINT64_C(10000000)
#define GIVE_UP_NS (60 * SECOND_NS)

/* vfork(2) suspends the launcher until the child has begun its program, and saves copying page
 * tables. Sanitizers keep state in memory that such a child would share. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define USE_VFORK false
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                         \
    __has_feature(memory_sanitizer)
#define USE_VFORK false
#endif
#endif
#ifndef USE_VFORK
#define USE_VFORK true
#endif

enum run_state { RUN_RUNNING, RUN_SWEEPING, RUN_ENDED };

struct run {
    struct launch_report report; /* what is told at the end, filled as it becomes known */
    enum run_state state;
    pid_t pid;
    uint32_t slot;
    char job[MOB_ID_STRING_BYTES];
    uint64_t started_ns, start_ticks; /* monotonic; 0 = not looked up */
    uint64_t deadline_ns;             /* its timeout; 0 = none */
    uint64_t kill_ns;                 /* from then on SIGKILL; 0 = not stopped */
    uint64_t check_ns;                /* look again then; 0 = no need */
    uint64_t ended_ns;
    struct run *next_by_number, *next_by_pid;
    struct run *previous, *next; /* all of them */
};

struct launcher {
    int socket_fd, signal_fd, timer_fd, epoll_fd;
    pid_t pid;
    uint64_t grace_ns, armed_ns;
    bool reset_oom_score, stopping, orphan_died;
    size_t sweeping;
    struct process_scanner scanner;
    struct process_table table;
    struct launch_slot *slots;
    uint32_t *free_slots;
    size_t free_slot_count;
    struct run *by_number[BUCKETS], *by_pid[BUCKETS], *first;
    struct launch_report *queue; /* reports not sent yet */
    size_t queue_first, queue_count, queue_capacity;
    bool waits_for_room;
    uint8_t packet[PACKET_LIMIT + 1];
};

/* --- runs --- */

static struct run *find_number(struct launcher *launcher, uint64_t number)
{
    struct run *run = launcher->by_number[number % BUCKETS];
    while (run && run->report.number != number)
        run = run->next_by_number;
    return run;
}

static struct run *find_pid(struct launcher *launcher, pid_t pid)
{
    struct run *run = launcher->by_pid[(unsigned)pid % BUCKETS];
    while (run && run->pid != pid)
        run = run->next_by_pid;
    return run;
}

static struct run *find_job(struct launcher *launcher, const char *job)
{
    struct run *run = launcher->first;
    while (run && (run->state == RUN_ENDED || strcmp(run->job, job) != 0))
        run = run->next;
    return run;
}

static void insert_run(struct launcher *launcher, struct run *run)
{
    struct run **number = &launcher->by_number[run->report.number % BUCKETS];
    run->next_by_number = *number;
    *number = run;
    run->next = launcher->first;
    if (run->next)
        run->next->previous = run;
    launcher->first = run;
}

static void insert_pid(struct launcher *launcher, struct run *run, pid_t pid)
{
    struct run **head = &launcher->by_pid[(unsigned)pid % BUCKETS];
    run->pid = pid;
    run->next_by_pid = *head;
    *head = run;
}

/* Its pid may be given out again once its session is empty, so a run that has ended is not found by
 * it. */
static void remove_pid(struct launcher *launcher, struct run *run)
{
    if (run->pid <= 0)
        return;
    struct run **link = &launcher->by_pid[(unsigned)run->pid % BUCKETS];
    while (*link && *link != run)
        link = &(*link)->next_by_pid;
    if (*link)
        *link = run->next_by_pid;
    run->pid = 0;
}

static void forget_run(struct launcher *launcher, struct run *run)
{
    remove_pid(launcher, run);
    struct run **link = &launcher->by_number[run->report.number % BUCKETS];
    while (*link != run)
        link = &(*link)->next_by_number;
    *link = run->next_by_number;
    if (run->previous)
        run->previous->next = run->next;
    else
        launcher->first = run->next;
    if (run->next)
        run->next->previous = run->previous;
    free(run);
}

/* --- reports --- */

static void send_queue(struct launcher *launcher)
{
    while (launcher->queue_count > 0) {
        const struct launch_report *report = &launcher->queue[launcher->queue_first];
        ssize_t sent =
            send(launcher->socket_fd, report, sizeof *report, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            break; /* no room: EPOLLOUT tells; gone: the read side notices */
        launcher->queue_first++;
        launcher->queue_count--;
    }
    if (launcher->queue_count == 0)
        launcher->queue_first = 0;
    bool wait = launcher->queue_count > 0;
    if (wait == launcher->waits_for_room)
        return;
    launcher->waits_for_room = wait;
    struct epoll_event event = {.events = EPOLLIN | (wait ? EPOLLOUT : 0),
                                .data.fd = launcher->socket_fd};
    epoll_ctl(launcher->epoll_fd, EPOLL_CTL_MOD, launcher->socket_fd, &event);
}

static void report(struct launcher *launcher, const struct launch_report *report,
                   enum launch_report_type type)
{
    size_t end = launcher->queue_first + launcher->queue_count;
    if (end == launcher->queue_capacity) {
        size_t capacity = launcher->queue_capacity ? launcher->queue_capacity * 2 : 64;
        struct launch_report *larger =
            reallocarray(launcher->queue, capacity, sizeof *launcher->queue);
        if (!larger) {
            mob_log_error("launcher: no memory for a report: the next sync tells it");
            return;
        }
        launcher->queue = larger;
        launcher->queue_capacity = capacity;
    }
    launcher->queue[end] = *report;
    launcher->queue[end].magic = LAUNCH_MAGIC;
    launcher->queue[end].type = type;
    launcher->queue_count++;
}

static void sync_server(struct launcher *launcher, uint64_t cookie)
{
    launcher->queue_first = launcher->queue_count = 0; /* meant for a dead server */
    struct launch_report frame = {.number = cookie};
    report(launcher, &frame, LAUNCHED_SYNC_BEGIN);
    for (struct run *run = launcher->first; run; run = run->next)
        report(launcher, &run->report, run->state == RUN_ENDED ? LAUNCHED_ENDED : LAUNCHED_RUNNING);
    report(launcher, &frame, LAUNCHED_SYNC_END);
}

static void end_run(struct launcher *launcher, struct run *run)
{
    if (run->state == RUN_SWEEPING)
        launcher->sweeping--;
    run->state = RUN_ENDED;
    run->check_ns = run->kill_ns = run->deadline_ns = 0;
    remove_pid(launcher, run);
    report(launcher, &run->report, LAUNCHED_ENDED);
}

/* --- timers --- */

static void arm(struct launcher *launcher, uint64_t at_ns)
{
    if (launcher->armed_ns && launcher->armed_ns <= at_ns)
        return;
    launcher->armed_ns = at_ns;
    struct itimerspec when = {
        .it_value = {.tv_sec = (time_t)(at_ns / SECOND_NS), .tv_nsec = (long)(at_ns % SECOND_NS)}};
    timerfd_settime(launcher->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void check_at(struct launcher *launcher, struct run *run, uint64_t at_ns)
{
    run->check_ns = at_ns;
    arm(launcher, at_ns);
}

/* --- trees --- */

static uint64_t start_ticks(struct launcher *launcher, struct run *run)
{
    struct process_entry entry;
    if (!run->start_ticks && run->pid > 0 && process_read(&launcher->scanner, run->pid, &entry))
        run->start_ticks = entry.start_ticks;
    return run->start_ticks;
}

/* A process that names no run: `run`'s, unless a run that isn't over can have made it. */
static bool can_only_be_of(struct launcher *launcher, const struct process_entry *entry,
                           const struct run *run)
{
    for (struct run *other = launcher->first; other; other = other->next)
        if (other != run && other->state == RUN_RUNNING &&
            start_ticks(launcher, other) <= entry->start_ticks)
            return false;
    return true;
}

static bool is_root_of(struct launcher *launcher, const struct process_entry *entry,
                       struct run *run)
{
    if (entry->pid == run->pid) /* once that has ended, another process may have got its number */
        return run->state == RUN_RUNNING;
    if (entry->session == run->pid)
        return true;
    if (entry->parent != launcher->pid || find_pid(launcher, entry->pid) ||
        find_pid(launcher, entry->session))
        return false;
    char job[64];
    struct run *owner =
        process_job(&launcher->scanner, entry->pid, job) ? find_job(launcher, job) : NULL;
    return owner ? owner == run : can_only_be_of(launcher, entry, run);
}

/* Marks in launcher->table what is alive of the run's tree, among the processes from..to. Returns
 * how many. */
static size_t mark_tree(struct launcher *launcher, struct run *run, pid_t from, pid_t to)
{
    errint_t error = process_scan(&launcher->scanner, from, to, &launcher->table);
    if (error)
        mob_log_error("launcher: can't read /proc: %s", strerror(-error));
    size_t count = 0;
    for (size_t i = 0; i < launcher->table.count; i++) {
        struct process_entry *entry = &launcher->table.entries[i];
        entry->marked = !entry->zombie && is_root_of(launcher, entry, run);
    }
    process_mark_descendants(&launcher->table);
    for (size_t i = 0; i < launcher->table.count; i++) {
        struct process_entry *entry = &launcher->table.entries[i];
        entry->marked = entry->marked && !entry->zombie;
        count += entry->marked;
    }
    return count;
}

/* The same among all processes that can be of the tree. Pids rise until they begin again: of a
 * young run, nothing is below its first process or above the last pid there is. A process that
 * forks and ends between the two looks leaves a pid above, so the last pid must be the same after
 * the look. */
static size_t find_tree(struct launcher *launcher, struct run *run)
{
    pid_t first = run->pid, last = 0;
    bool young = mob_monotonic_ns() - run->started_ns < SECOND_NS;
    for (int round = 0; young && round < 4; round++) {
        pid_t now = process_last_pid(&launcher->scanner);
        if (now < first || now < last)
            break;
        if (now == last)
            return 0;
        last = now;
        size_t count = mark_tree(launcher, run, first, last);
        if (count > 0)
            return count;
    }
    return mark_tree(launcher, run, 1, INT_MAX);
}

static void signal_tree(struct launcher *launcher, struct run *run, int signal)
{
    find_tree(launcher, run);
    for (size_t i = 0; i < launcher->table.count; i++)
        if (launcher->table.entries[i].marked)
            process_signal(&launcher->scanner, &launcher->table.entries[i], signal);
}

/* The first process has ended: ends what it left, and the run with it when there is nothing left.
 */
static void sweep(struct launcher *launcher, struct run *run)
{
    uint64_t now = mob_monotonic_ns();
    size_t left = find_tree(launcher, run);
    if (left > 0 && now - run->ended_ns > GIVE_UP_NS) {
        mob_log_warning("job %s: %zu processes can't be ended", run->job, left);
        left = 0;
    }
    if (left == 0) {
        end_run(launcher, run);
        return;
    }
    if (now < run->kill_ns) { /* stopped: the grace is theirs too */
        check_at(launcher, run, run->kill_ns);
        return;
    }
    for (size_t i = 0; i < launcher->table.count; i++)
        if (launcher->table.entries[i].marked)
            process_signal(&launcher->scanner, &launcher->table.entries[i], SIGKILL);
    check_at(launcher, run, now + KILL_AGAIN_NS);
}

static void stop_run(struct launcher *launcher, struct run *run, enum launch_stop why)
{
    if (run->state == RUN_ENDED || run->report.stop != LAUNCH_STOP_NONE)
        return;
    run->report.stop = why;
    run->deadline_ns = 0;
    run->kill_ns = mob_monotonic_ns() + launcher->grace_ns;
    signal_tree(launcher, run, SIGTERM);
    signal_tree(launcher, run, SIGCONT); /* one that is stopped could not end */
    check_at(launcher, run, run->kill_ns);
}

static void on_timer(struct launcher *launcher)
{
    uint64_t now = mob_monotonic_ns(), next = 0, ticks;
    if (read(launcher->timer_fd, &ticks, sizeof ticks) < 0 && errno != EAGAIN)
        mob_log_error("launcher: timer: %s", strerror(errno));
    launcher->armed_ns = 0;
    for (struct run *run = launcher->first; run; run = run->next) {
        if (run->deadline_ns && run->deadline_ns <= now)
            stop_run(launcher, run, LAUNCH_STOP_TIMEOUT);
        if (run->check_ns && run->check_ns <= now) {
            run->check_ns = 0;
            if (run->state == RUN_SWEEPING) {
                sweep(launcher, run);
            } else if (run->kill_ns && run->kill_ns <= now) {
                signal_tree(launcher, run, SIGKILL);
                check_at(launcher, run, now + 5 * KILL_AGAIN_NS);
            }
        }
        if (run->deadline_ns && (!next || run->deadline_ns < next))
            next = run->deadline_ns;
        if (run->check_ns && (!next || run->check_ns < next))
            next = run->check_ns;
    }
    if (next)
        arm(launcher, next);
}

/* --- starting --- */

static void start_process(struct launcher *launcher, struct run *run,
                          const struct launch_request *request, int stdout_fd, int stderr_fd)
{
    struct launcher_child child = {.request = request,
                                   .stdout_fd = stdout_fd,
                                   .stderr_fd = stderr_fd,
                                   .slot = &launcher->slots[run->slot],
                                   .launcher = launcher->pid,
                                   .reset_oom_score = launcher->reset_oom_score,
                                   .change_user = geteuid() == 0};
    *child.slot = (struct launch_slot){0};
    pid_t pid = USE_VFORK && request->plain_paths ? vfork() : fork();
    if (pid == 0)
        launcher_child(&child);
    if (pid > 0) {
        insert_pid(launcher, run, pid);
        run->report.pid = pid;
        return;
    }
    run->report.stage = LAUNCH_STAGE_FORK;
    run->report.stage_errno = (uint32_t)errno;
}

/* A run that can't even be begun ends like any other, so that the server has one way to hear of it.
 */
static void start_run(struct launcher *launcher, const struct launch_command *command,
                      const uint8_t *body, size_t bytes, int stdout_fd, int stderr_fd)
{
    struct run *run = find_number(launcher, command->number);
    if (run && (run->state != RUN_ENDED || run->report.attempt == command->attempt))
        return; /* told twice */
    if (run)
        forget_run(launcher, run);
    run = calloc(1, sizeof *run);
    if (!run) {
        struct launch_report failed = {.number = command->number,
                                       .attempt = command->attempt,
                                       .stage = LAUNCH_STAGE_FORK,
                                       .stage_errno = ENOMEM};
        report(launcher, &failed, LAUNCHED_ENDED);
        return;
    }
    run->report.number = command->number;
    run->report.attempt = command->attempt;
    run->report.started_ns = mob_realtime_ns();
    run->started_ns = mob_monotonic_ns();
    run->slot = SLOT_COUNT;
    insert_run(launcher, run);
    struct launch_request request = {0};
    errint_t error = body && stdout_fd >= 0 && stderr_fd >= 0
                         ? launch_request_decode(body, bytes, &request)
                         : -EBADMSG;
    if (!error && launcher->free_slot_count == 0)
        error = -EAGAIN;
    if (error) {
        run->report.stage = LAUNCH_STAGE_FORK;
        run->report.stage_errno = (uint32_t)-error;
    } else {
        run->slot = launcher->free_slots[--launcher->free_slot_count];
        snprintf(run->job, sizeof run->job, "%s", request.job);
        start_process(launcher, run, &request, stdout_fd, stderr_fd);
    }
    if (run->report.stage == LAUNCH_STAGE_FORK) {
        if (run->slot < SLOT_COUNT)
            launcher->free_slots[launcher->free_slot_count++] = run->slot;
        run->report.ended_ns = mob_realtime_ns();
        end_run(launcher, run);
    } else if (command->timeout_ns) {
        run->deadline_ns = run->started_ns + command->timeout_ns;
        arm(launcher, run->deadline_ns);
    }
    launch_request_free(&request);
}

/* --- ends --- */

static void first_process_ended(struct launcher *launcher, struct run *run, int status,
                                const struct rusage *usage)
{
    const struct launch_slot *slot = &launcher->slots[run->slot];
    struct launch_report *report = &run->report;
    run->ended_ns = mob_monotonic_ns();
    report->status = status;
    report->stage = slot->stage;
    report->stage_errno = slot->stage_errno;
    report->ended_ns = mob_realtime_ns();
    report->wall_ns = run->ended_ns - run->started_ns;
    report->user_us =
        (uint64_t)usage->ru_utime.tv_sec * 1000000 + (uint64_t)usage->ru_utime.tv_usec;
    report->system_us =
        (uint64_t)usage->ru_stime.tv_sec * 1000000 + (uint64_t)usage->ru_stime.tv_usec;
    report->max_resident_bytes = (uint64_t)usage->ru_maxrss * 1024;
    launcher->free_slots[launcher->free_slot_count++] = run->slot;
    run->deadline_ns = run->check_ns = 0;
    run->state = RUN_SWEEPING;
    launcher->sweeping++;
    sweep(launcher, run);
}

static void reap(struct launcher *launcher)
{
    int status;
    struct rusage usage;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG | __WALL, &usage)) > 0) {
        struct run *run = find_pid(launcher, pid);
        if (run && run->state == RUN_RUNNING)
            first_process_ended(launcher, run, status, &usage);
        else
            launcher->orphan_died = true;
    }
    if (!launcher->orphan_died || launcher->sweeping == 0) {
        launcher->orphan_died = false;
        return;
    }
    launcher->orphan_died = false;
    for (struct run *run = launcher->first, *next; run; run = next) {
        next = run->next;
        if (run->state == RUN_SWEEPING)
            sweep(launcher, run);
    }
}

static void on_signal(struct launcher *launcher)
{
    struct signalfd_siginfo info;
    while (read(launcher->signal_fd, &info, sizeof info) == (ssize_t)sizeof info)
        if (info.ssi_signo == SIGTERM)
            launcher->stopping = true;
    reap(launcher);
}

/* --- commands --- */

static void on_run(struct launcher *launcher, const struct launch_command *command, size_t bytes,
                   const int fds[3])
{
    const uint8_t *body = launcher->packet + sizeof *command;
    if (!command->body_in_fd) {
        bool whole = command->body_bytes == bytes - sizeof *command;
        start_run(launcher, command, whole ? body : NULL, command->body_bytes, fds[0], fds[1]);
        return;
    }
    cleanup_free uint8_t *large = NULL;
    if (command->body_bytes <= LAUNCH_BODY_LIMIT && fds[2] >= 0)
        large = malloc((size_t)command->body_bytes + 1);
    /* Copied, not mapped: a file that shrinks must not end the launcher. */
    if (large &&
        mob_pread_full(fds[2], large, command->body_bytes, 0) != (ssize_t)command->body_bytes) {
        free(large);
        large = NULL;
    }
    start_run(launcher, command, large, command->body_bytes, fds[0], fds[1]);
}

static void on_command(struct launcher *launcher, size_t bytes, const int fds[3])
{
    struct launch_command command;
    if (bytes < sizeof command)
        return;
    memcpy(&command, launcher->packet, sizeof command);
    if (command.magic != LAUNCH_MAGIC) {
        mob_log_error("launcher: a message that is not ours");
        return;
    }
    struct run *run = find_number(launcher, command.number);
    bool same = run && run->report.attempt == command.attempt;
    switch (command.type) {
    case LAUNCH_RUN:
        on_run(launcher, &command, bytes, fds);
        break;
    case LAUNCH_STOP:
        if (same && command.value > LAUNCH_STOP_NONE && command.value <= LAUNCH_STOP_DOWN)
            stop_run(launcher, run, command.value);
        break;
    case LAUNCH_SIGNAL:
        if (same && run->state != RUN_ENDED && command.value > 0 && command.value < NSIG)
            signal_tree(launcher, run, (int)command.value);
        break;
    case LAUNCH_SYNC:
        sync_server(launcher, command.number);
        break;
    case LAUNCH_ACK:
        if (same && run->state == RUN_ENDED)
            forget_run(launcher, run);
        break;
    default:
        mob_log_error("launcher: unknown command %u", command.type);
    }
}

/* Descriptors of a packet: the first three; others are closed. */
static void take_descriptors(struct msghdr *message, int fds[3])
{
    size_t taken = 0;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (taken < 3)
                fds[taken++] = fd;
            else
                close(fd);
        }
    }
}

/* False: nothing more to read now. */
static bool receive(struct launcher *launcher)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control;
    struct iovec vector = {launcher->packet, PACKET_LIMIT};
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t got = recvmsg(launcher->socket_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0)
        return errno == EINTR;
    int fds[3] = {-1, -1, -1};
    take_descriptors(&message, fds);
    if (got == 0)
        launcher->stopping = true;
    else if (!(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
        on_command(launcher, (size_t)got, fds);
    else
        mob_log_error("launcher: a message that is too long");
    for (int i = 0; i < 3; i++)
        mob_cleanup_fd(&fds[i]);
    return got > 0;
}

/* --- begin and end --- */

static errint_t watch(struct launcher *launcher, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(launcher->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

/* Only standard descriptors and the socket stay: above all, nobody's /dev/fuse may live on here. */
static int keep_only(int fd)
{
    while (fd <= STDERR_FILENO) {
        fd = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        if (fd < 0)
            return -errno;
    }
    if (fd > 3)
        syscall(SYS_close_range, 3u, (unsigned)fd - 1, 0u);
    syscall(SYS_close_range, (unsigned)fd + 1, ~0u, 0u);
    for (int standard = 0; standard <= STDERR_FILENO; standard++)
        if (fcntl(standard, F_GETFD) < 0 && open("/dev/null", O_RDWR) != standard)
            return -EBADF;
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

static errint_t set_up_signals(struct launcher *launcher)
{
    sigset_t all, watched;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL); /* also against a terminal's ^C: the keeper decides */
    /* What a parent ignored, jobs would ignore. By system call, as the C library keeps 32 and 33 to
     * itself; a kernel's struct sigaction that is all zeros is SIG_DFL. */
    const uint64_t defaults[8] = {0};
    for (int signal = 1; signal < NSIG; signal++)
        syscall(SYS_rt_sigaction, signal, defaults, NULL, sizeof(uint64_t));
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigaddset(&watched, SIGTERM);
    launcher->signal_fd = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    return launcher->signal_fd < 0 ? -errno : 0;
}

static errint_t set_up(struct launcher *launcher)
{
    launcher->pid = getpid();
    launcher->scanner.proc_fd = -1;
    const char *grace = getenv("MOBULA_GRACE_MS");
    long grace_ms = grace ? strtol(grace, NULL, 10) : 2000;
    launcher->grace_ns = (uint64_t)(grace_ms < 0 || grace_ms > 3600000 ? 2000 : grace_ms) * 1000000;
    if (launcher->socket_fd < 0)
        return launcher->socket_fd;
    if (prctl(PR_SET_CHILD_SUBREAPER, 1))
        return -errno;
    launcher->slots = mmap(NULL, SLOT_COUNT * sizeof *launcher->slots, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (launcher->slots == MAP_FAILED)
        return -errno;
    launcher->free_slots = malloc(SLOT_COUNT * sizeof *launcher->free_slots);
    if (!launcher->free_slots)
        return -ENOMEM;
    for (uint32_t i = 0; i < SLOT_COUNT; i++)
        launcher->free_slots[launcher->free_slot_count++] = SLOT_COUNT - 1 - i;
    errint_t error = process_scanner_open(&launcher->scanner);
    if (error || (error = set_up_signals(launcher)))
        return error;
    char *score = NULL;
    if (!mob_read_file(AT_FDCWD, "/proc/self/oom_score_adj", 64, &score, NULL))
        launcher->reset_oom_score = strtol(score, NULL, 10) != 0;
    free(score);
    launcher->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    launcher->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (launcher->timer_fd < 0 || launcher->epoll_fd < 0)
        return -errno;
    if ((error = watch(launcher, launcher->socket_fd)) ||
        (error = watch(launcher, launcher->signal_fd)) ||
        (error = watch(launcher, launcher->timer_fd)))
        return error;
    return 0;
}

/* SIGKILL to everything below this process until there is nothing, for at most five seconds. */
static void end_everything(struct launcher *launcher)
{
    uint64_t deadline = mob_monotonic_ns() + 5 * SECOND_NS;
    while (mob_monotonic_ns() < deadline) {
        while (waitpid(-1, NULL, WNOHANG | __WALL) > 0)
            ;
        if (process_scan(&launcher->scanner, 1, INT_MAX, &launcher->table))
            return;
        size_t left = 0;
        for (size_t i = 0; i < launcher->table.count; i++) {
            struct process_entry *entry = &launcher->table.entries[i];
            entry->marked = entry->parent == launcher->pid;
        }
        process_mark_descendants(&launcher->table);
        for (size_t i = 0; i < launcher->table.count; i++) {
            if (!launcher->table.entries[i].marked)
                continue;
            left++;
            process_signal(&launcher->scanner, &launcher->table.entries[i], SIGKILL);
        }
        if (left == 0)
            return;
        struct timespec pause = {.tv_nsec = 2000000};
        nanosleep(&pause, NULL);
    }
    mob_log_warning("launcher: some processes can't be ended");
}

static void serve(struct launcher *launcher)
{
    struct epoll_event events[8];
    while (!launcher->stopping) {
        int count = epoll_wait(launcher->epoll_fd, events, MOB_ARRAY_LENGTH(events), -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == launcher->signal_fd)
                on_signal(launcher);
            else if (events[i].data.fd == launcher->timer_fd)
                on_timer(launcher);
            else if (events[i].events & (EPOLLIN | EPOLLHUP))
                for (int more = 64; more > 0 && receive(launcher); more--)
                    ;
        }
        send_queue(launcher);
    }
}

int launcher_run(int fd)
{
    pid_t parent = getppid();
    struct launcher *launcher = calloc(1, sizeof *launcher);
    if (!launcher)
        return 1;
    launcher->socket_fd = keep_only(fd);
    launcher->signal_fd = launcher->timer_fd = launcher->epoll_fd = -1;
    errint_t error = set_up(launcher);
    if (error)
        mob_log_error("launcher: can't start: %s", strerror(-error));
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (!error && getppid() == parent)
        serve(launcher);
    if (launcher->scanner.proc_fd >= 0)
        end_everything(launcher);
    while (launcher->first)
        forget_run(launcher, launcher->first);
    mob_cleanup_fd(&launcher->socket_fd);
    mob_cleanup_fd(&launcher->signal_fd);
    mob_cleanup_fd(&launcher->timer_fd);
    mob_cleanup_fd(&launcher->epoll_fd);
    process_scanner_close(&launcher->scanner);
    process_table_free(&launcher->table);
    if (launcher->slots && launcher->slots != MAP_FAILED)
        munmap(launcher->slots, SLOT_COUNT * sizeof *launcher->slots);
    free(launcher->free_slots);
    free(launcher->queue);
    free(launcher);
    return error ? 1 : 0;
}
