/* Transport, the common part: the libfuse session behind its custom I/O, INIT, serving and
 * stopping. transport_ring.c and transport_device.c are the two ways in, transport_notify.c the way
 * back that is no reply, transport_mount.c the keeper's part. */
#include "fs/transport_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/util.h"

enum { KICKER_POLL_MS = 50, HURRY = -10 };

_Thread_local struct current_request transport_current;

/* --- the request in hand --- */

const void *transport_current_request(size_t *bytes)
{
    if (bytes)
        *bytes = transport_current.size;
    return transport_current.bytes;
}

uint64_t transport_current_unique(void)
{
    return transport_current.unique & ~ABI_UNIQUE_RESEND;
}

bool transport_current_is_resent(void)
{
    return transport_current.resent;
}

/* Answers without libfuse: for a transport that serves nobody. */
static void refuse_request(struct transport *transport, const struct fuse_in_header *in)
{
    if (in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET ||
        in->opcode == FUSE_INTERRUPT)
        return;
    struct fuse_out_header out = {.len = sizeof(out), .error = -EIO, .unique = in->unique};
    struct iovec iov = {&out, sizeof(out)};
    if (in->unique & RING_UNIQUE)
        (void)ring_reply(transport, &iov, 1);
    else
        (void)transport_write_device(transport, &iov, 1);
}

void transport_handle(struct transport *transport, char *bytes, size_t size, uint64_t unique,
                      bool resent, struct ring_entry *entry)
{
    transport_current = (struct current_request){
        .transport = transport,
        .entry = entry,
        .bytes = bytes,
        .size = size,
        .unique = unique,
        .resent = resent || (unique & ABI_UNIQUE_RESEND) != 0,
    };
    wakeups_note(transport->wakeups);
    const struct fuse_in_header *in = (const void *)bytes;
    if (transport->refuse && in->opcode != FUSE_INIT) {
        refuse_request(transport, in);
    } else {
        struct fuse_buf buffer = {.size = size, .mem = bytes};
        fuse_session_process_buf(transport->fuse, &buffer);
    }
    transport_current = (struct current_request){0};
}

/* --- INIT --- */

static void want(struct fuse_conn_info *connection, unsigned capability, bool on)
{
    if (on)
        connection->want |= connection->capable & capability;
    else
        connection->want &= ~capability;
}

/* What we ask for, before the user's init op may change it. Locks are left to the kernel; data
 * reach us by custom I/O, which cannot splice; pages stay cached until we say otherwise, as objects
 * never change; and reading a directory gives names only, as most of them will not be looked at. */
static void choose_capabilities(const struct transport *transport,
                                struct fuse_conn_info *connection)
{
    want(connection,
         FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ASYNC_READ |
             FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_ASYNC_DIO,
         true);
    want(connection,
         FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE |
             FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_WRITEBACK_CACHE |
             FUSE_CAP_CACHE_SYMLINKS | FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS |
             FUSE_CAP_EXPORT_SUPPORT | FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_HANDLE_KILLPRIV,
         false);
    connection->max_write = transport->max_write_bytes;
    connection->max_background = TRANSPORT_BACKGROUND;
    connection->congestion_threshold = TRANSPORT_BACKGROUND * 3 / 4;
}

static void on_init(void *context, struct fuse_conn_info *connection)
{
    struct transport *transport = transport_current.transport;
    choose_capabilities(transport, connection);
    if (transport->user_ops.init && !transport->refuse)
        transport->user_ops.init(context, connection);
    if (connection->max_write > transport->max_write_bytes)
        connection->max_write = transport->max_write_bytes;
}

/* libfuse's init_out with what libfuse 3.14 does not know. Decided anew by every server, but only
 * the first one's is sent; what was sent is what session memory says. */
static void patch_init_reply(struct transport *transport, struct abi_init_out *out)
{
    struct session *session = transport->session;
    /* HANDLE_KILLPRIV_V2: without it every write asks for security.capability first. There is
     * nothing to kill: the mount is nosuid, and no object keeps such a bit. */
    uint64_t flags =
        ABI_INIT_EXT | (transport->kernel_flags & (ABI_INIT_HAS_RESEND | FUSE_HANDLE_KILLPRIV_V2 |
                                                   ABI_INIT_DIRECT_IO_ALLOW_MMAP));
    if (atomic_load(&session->ring))
        flags |= ABI_INIT_OVER_IO_URING;
    if (atomic_load(&session->passthrough)) {
        flags |= ABI_INIT_PASSTHROUGH;
        out->max_stack_depth = 1;
    }
    if (transport->kernel_flags & ABI_INIT_EXT) {
        out->flags |= (uint32_t)flags;
        out->flags2 |= (uint32_t)(flags >> 32);
    }
    atomic_store(&session->max_write_bytes, out->max_write);
}

/* Which way, and passthrough: before INIT is answered the first time. */
static errint_t negotiate(struct transport *transport)
{
    struct session *session = transport->session;
    bool offered = (transport->kernel_flags & ABI_INIT_OVER_IO_URING) != 0;
    if (!offered)
        snprintf(transport->ring_refusal, sizeof(transport->ring_refusal),
                 access("/sys/module/fuse/parameters/enable_uring", F_OK) == 0
                     ? "/sys/module/fuse/parameters/enable_uring is off"
                     : "the kernel has no FUSE over io_uring (6.14 or newer)");
    else if (transport->wanted == TRANSPORT_DEVICE)
        snprintf(transport->ring_refusal, sizeof(transport->ring_refusal), "as asked");
    atomic_store(&session->ring, offered && transport->wanted != TRANSPORT_DEVICE);
    atomic_store(&session->passthrough, transport->want_passthrough &&
                                            (transport->kernel_flags & ABI_INIT_PASSTHROUGH) != 0);
    return transport->wanted == TRANSPORT_RING && !offered ? -EOPNOTSUPP : 0;
}

static ssize_t iov_bytes(const struct iovec *iov, int count)
{
    ssize_t bytes = 0;
    for (int i = 0; i < count; i++)
        bytes += (ssize_t)iov[i].iov_len;
    return bytes;
}

static ssize_t reply_to_init(struct transport *transport, struct iovec *iov, int count)
{
    const struct fuse_out_header *out = iov[0].iov_base;
    if (out->error || count < 2 || iov[1].iov_len < sizeof(struct abi_init_out))
        transport->init_error = out->error ? out->error : -EPROTO;
    else
        patch_init_reply(transport, iov[1].iov_base);
    if (!transport->answer_init)
        return iov_bytes(iov, count);
    errint_t written = transport_write_device(transport, iov, count);
    /* ENOENT: our predecessor answered it and died before it could note that. */
    if (written < 0 && written != -ENOENT)
        transport->init_error = written;
    else
        atomic_store(&transport->session->init_answered, true);
    return iov_bytes(iov, count);
}

/* Feeds an INIT (fresh, or saved by a predecessor) to libfuse. */
static errint_t process_init(struct transport *transport, char *bytes, size_t size,
                             struct mob_error *err)
{
    const struct fuse_in_header *in = (const void *)bytes;
    const struct abi_init_in *init = (const void *)(bytes + sizeof(*in));
    if (size < sizeof(*in) + offsetof(struct abi_init_in, flags2) || in->opcode != FUSE_INIT)
        return mob_error_set(err, -EPROTO, "the kernel's first request is not INIT");
    transport->init_unique = in->unique;
    transport->kernel_flags = init->flags;
    if ((init->flags & ABI_INIT_EXT) && size >= sizeof(*in) + offsetof(struct abi_init_in, unused))
        transport->kernel_flags |= (uint64_t)init->flags2 << 32;

    transport->can_store = init->minor >= ABI_MINOR_STORE_ZEROES;
    bool fresh = !atomic_load(&transport->session->init_answered);
    transport->answer_init = fresh;
    if (fresh) {
        errint_t refused = negotiate(transport);
        if (refused)
            return mob_error_set(err, refused, "cannot serve over io_uring: %s",
                                 transport->ring_refusal);
    }
    transport_handle(transport, bytes, size, in->unique, false, NULL);
    transport->init_unique = 0;
    if (transport->init_error)
        return mob_error_set(err, transport->init_error, "the FUSE handshake failed: %s",
                             strerror(-transport->init_error));
    return 0;
}

static errint_t read_first_request(struct transport *transport, char *buffer, size_t *size,
                                   struct mob_error *err)
{
    /* A predecessor may have read INIT and died before it could save it. */
    if (atomic_load(&transport->session->servings) > 1)
        device_resend(transport);
    ssize_t got = device_read(transport, buffer, device_buffer_bytes(transport));
    if (got == 0 || got == -EINTR)
        return -ECANCELED; /* unmounted, or stopped */
    if (got < 0)
        return mob_error_set(err, (errint_t)got, "cannot read from the FUSE connection: %s",
                             strerror((int)-got));
    *size = (size_t)got;
    return 0;
}

static errint_t handshake(struct transport *transport, struct mob_error *err)
{
    struct session *session = transport->session;
    cleanup_free char *buffer = malloc(device_buffer_bytes(transport));
    if (!buffer)
        return mob_error_set(err, -ENOMEM, "out of memory");
    size_t size = atomic_load_explicit(&session->init_bytes, memory_order_acquire);
    if (size == 0) {
        errint_t failed = read_first_request(transport, buffer, &size, err);
        if (failed)
            return failed;
        if (size > SESSION_INIT_BYTES)
            return mob_error_set(err, -EPROTO, "an INIT request of %zu bytes", size);
        memcpy(session->init_request, buffer, size);
        atomic_store_explicit(&session->init_bytes, (uint32_t)size, memory_order_release);
    } else {
        memcpy(buffer, session->init_request, size);
    }
    return process_init(transport, buffer, size, err);
}

/* --- libfuse's I/O --- */

/* libfuse's custom I/O is told the user's context and the descriptor, and the descriptor (a
 * duplicate of ours, which libfuse closes) is what leads back to the transport. */
enum { MAX_TRANSPORTS = 16 };
static _Atomic(struct transport *) transports[MAX_TRANSPORTS];

static struct transport *find_transport(int fuse_fd)
{
    for (unsigned i = 0; i < MAX_TRANSPORTS; i++) {
        struct transport *transport = atomic_load_explicit(&transports[i], memory_order_acquire);
        if (transport && transport->fuse_fd == fuse_fd)
            return transport;
    }
    return NULL;
}

static errint_t remember_transport(struct transport *transport)
{
    for (unsigned i = 0; i < MAX_TRANSPORTS; i++) {
        struct transport *expected = NULL;
        if (atomic_compare_exchange_strong(&transports[i], &expected, transport))
            return 0;
    }
    return -EMFILE;
}

static void forget_transport(struct transport *transport)
{
    for (unsigned i = 0; i < MAX_TRANSPORTS; i++) {
        struct transport *expected = transport;
        if (atomic_compare_exchange_strong(&transports[i], &expected, NULL))
            return;
    }
}

errint_t transport_write_device(struct transport *transport, const struct iovec *iov, int count)
{
    ssize_t written;
    do
        written = writev(transport->fd, iov, count);
    while (written < 0 && errno == EINTR);
    if (written < 0)
        return -errno;
    /* The kernel takes a message whole or not at all. */
    return written == iov_bytes(iov, count) ? 0 : -EIO;
}

static ssize_t on_writev(int fd, struct iovec *iov, int count, void *context)
{
    (void)context;
    struct transport *transport = find_transport(fd);
    if (!transport) {
        errno = EBADF;
        return -1;
    }
    const struct fuse_out_header *out = iov[0].iov_base;
    if (transport->init_unique && out->unique == transport->init_unique)
        return reply_to_init(transport, iov, count);
    errint_t failed = out->unique & RING_UNIQUE ? ring_reply(transport, iov, count)
                                                : transport_write_device(transport, iov, count);
    if (failed) {
        errno = -failed;
        return -1;
    }
    return iov_bytes(iov, count);
}

/* Never called, as we read for ourselves; libfuse insists on having one. */
static ssize_t on_read(int fd, void *buffer, size_t bytes, void *context)
{
    (void)context;
    return read(fd, buffer, bytes);
}

static const struct fuse_custom_io custom_io = {.writev = on_writev, .read = on_read};

/* --- life --- */

static errint_t make_fuse_session(struct transport *transport, size_t ops_bytes,
                                  struct mob_error *err)
{
    struct fuse_lowlevel_ops ops = transport->user_ops;
    ops.init = on_init;
    char *arguments[] = {"mobula", NULL};
    struct fuse_args args = FUSE_ARGS_INIT(1, arguments);
    transport->fuse = fuse_session_new(&args, &ops, ops_bytes, transport->context);
    fuse_opt_free_args(&args);
    if (!transport->fuse)
        return mob_error_set(err, -ENOMEM, "libfuse could not make a session");
    transport->fuse_fd = fcntl(transport->fd, F_DUPFD_CLOEXEC, 3);
    if (transport->fuse_fd < 0)
        return mob_error_set(err, -errno, "cannot duplicate the FUSE descriptor: %s",
                             strerror(errno));
    int failed = fuse_session_custom_io(transport->fuse, &custom_io, transport->fuse_fd);
    if (failed) {
        close(transport->fuse_fd);
        return mob_error_set(err, -EINVAL, "libfuse refuses custom I/O (%d)", failed);
    }
    failed = remember_transport(transport);
    if (failed)
        return mob_error_set(err, failed, "too many FUSE transports in one process");
    return 0;
}

errint_t transport_create(const struct transport_options *options,
                          const struct fuse_lowlevel_ops *ops, size_t ops_bytes, void *context,
                          struct transport **out, struct mob_error *err)
{
    *out = NULL;
    if (ops_bytes > sizeof(*ops))
        return mob_error_set(err, -EINVAL, "operations of a newer libfuse");
    struct transport *transport = calloc(1, sizeof(*transport));
    if (!transport)
        return mob_error_set(err, -ENOMEM, "out of memory");
    transport->fd = options->fd;
    transport->session = options->session;
    memcpy(&transport->user_ops, ops, ops_bytes);
    transport->context = context;
    transport->wanted = options->kind;
    transport->want_passthrough = options->want_passthrough;
    transport->want_wakeups = options->idle_polling;
    transport->depth = options->ring_depth ? options->ring_depth : TRANSPORT_DEFAULT_DEPTH;
    if (transport->depth > TRANSPORT_MAX_DEPTH)
        transport->depth = TRANSPORT_MAX_DEPTH;
    transport->max_write_bytes = options->max_write_bytes;
    if (!transport->max_write_bytes || transport->max_write_bytes > SESSION_PAYLOAD_BYTES)
        transport->max_write_bytes = SESSION_PAYLOAD_BYTES;
    transport->fuse_fd = -1;
    transport->kind = TRANSPORT_DEVICE;
    snprintf(transport->description, sizeof(transport->description), "not serving yet");
    transport->stop_fd = eventfd(0, EFD_CLOEXEC);
    errint_t failed = transport->stop_fd < 0
                          ? mob_error_set(err, -errno, "eventfd: %s", strerror(errno))
                          : make_fuse_session(transport, sizeof(*ops), err);
    if (failed) {
        transport_destroy(transport);
        return failed;
    }
    *out = transport;
    return 0;
}

void transport_destroy(struct transport *transport)
{
    if (!transport)
        return;
    if (transport->fuse)
        fuse_session_destroy(transport->fuse); /* closes fuse_fd */
    forget_transport(transport);
    ring_destroy(transport);
    if (transport->stop_fd >= 0)
        close(transport->stop_fd);
    free(transport);
}

void transport_stop(struct transport *transport)
{
    int saved_errno = errno;
    uint64_t one = 1;
    /* Fails only when the counter is full, and then it has been asked before. */
    ssize_t written = write(transport->stop_fd, &one, sizeof(one));
    (void)written;
    errno = saved_errno;
}

void transport_end(struct transport *transport)
{
    atomic_store(&transport->gone, true);
    transport_stop(transport);
}

void transport_pin_thread(unsigned core)
{
    cpu_set_t set;
    if (core >= CPU_SETSIZE)
        return;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    /* Fails for a core that is offline or not ours: then it runs where it may. */
    if (sched_setaffinity(0, sizeof(set), &set) < 0)
        mob_log_debug("no thread on core %u: %s", core, strerror(errno));
}

void transport_name_thread(const char *what, unsigned number)
{
    char name[16];
    snprintf(name, sizeof(name), "mob-%s-%u", what, number % 10000);
    pthread_setname_np(pthread_self(), name);
    /* Each request is answered in microseconds, and somebody waits for it: not behind the programs
     * that fill the cores, nor behind what is written to disk. An ordinary user may not ask. */
    if (!mob_hurry(HURRY))
        mob_log_debug("thread %s has no priority: %s", name, strerror(errno));
}

/* "0-3,8" -> 9: one more than the last. */
static int count_possible_cores(void)
{
    cleanup_free char *text = NULL;
    size_t bytes;
    int cores = (int)sysconf(_SC_NPROCESSORS_CONF);
    if (mob_read_file(AT_FDCWD, "/sys/devices/system/cpu/possible", 4096, &text, &bytes) == 0) {
        const char *last = text;
        for (const char *at = text; *at; at++)
            if (*at == '-' || *at == ',')
                last = at + 1;
        int number = atoi(last);
        if (number >= 0 && number < SESSION_MAX_QUEUES)
            cores = number + 1;
    }
    return cores > 0 ? cores : 1;
}

static void describe(struct transport *transport, unsigned threads)
{
    if (transport->kind == TRANSPORT_RING)
        snprintf(transport->description, sizeof(transport->description), "io_uring, %u queues%s",
                 threads, transport->passthrough ? ", passthrough" : "");
    else
        snprintf(transport->description, sizeof(transport->description), "device, %u threads%s%s%s",
                 threads, transport->passthrough ? ", passthrough" : "",
                 transport->ring_refusal[0] ? ": " : "", transport->ring_refusal);
}

/* Root without CAP_SYS_ADMIN, or a user: the kernel agrees to passthrough and then refuses files.
 */
static bool passthrough_works(struct transport *transport)
{
    if (!atomic_load(&transport->session->passthrough))
        return false;
    cleanup_fd int fd = memfd_create("mobula-probe", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    int backing_id = transport_backing_open(transport, fd);
    if (backing_id <= 0)
        return false;
    (void)transport_backing_close(transport, backing_id);
    return true;
}

static errint_t start_ring(struct transport *transport, struct mob_error *err)
{
    transport->kind = TRANSPORT_RING;
    errint_t failed = ring_create(transport);
    if (failed)
        return mob_error_set(err, failed, "cannot make the ring: %s", strerror(-failed));
    describe(transport, ring_queue_count(transport)); /* before anybody can read it */
    /* What the ring does not carry: FORGET, INTERRUPT, and what came before it was ready. */
    failed = device_start(transport, 1, false, err);
    if (!failed)
        failed = ring_start(transport, err);
    if (!failed && transport->successor)
        ring_kick_from_outside(transport);
    return failed;
}

static errint_t start_threads(struct transport *transport, struct mob_error *err)
{
    unsigned online = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    if (online < 1 || online > SESSION_MAX_QUEUES)
        online = 1;
    if (atomic_load(&transport->session->ring))
        return start_ring(transport, err);
    describe(transport, online);
    return device_start(transport, online, true, err);
}

static void wait_for_stop(struct transport *transport)
{
    struct pollfd stop = {.fd = transport->stop_fd, .events = POLLIN};
    for (;;) {
        bool kicking = ring_reap_kicker(transport);
        if (poll(&stop, 1, kicking ? KICKER_POLL_MS : -1) > 0)
            return;
    }
}

errint_t transport_negotiate(struct transport *transport, struct mob_error *err)
{
    if (atomic_exchange(&transport->served, true))
        return mob_error_set(err, -EINVAL, "a transport serves once");
    transport->possible_cores = count_possible_cores();
    transport->successor = atomic_load(&transport->session->init_answered);
    atomic_fetch_add(&transport->session->servings, 1);
    errint_t failed = handshake(transport, err);
    if (failed)
        return failed;
    transport->passthrough = passthrough_works(transport);
    return 0;
}

errint_t transport_serve(struct transport *transport, struct mob_error *err)
{
    errint_t failed = 0;
    if (!atomic_load(&transport->served))
        failed = transport_negotiate(transport, err);
    if (failed)
        return failed == -ECANCELED ? 0 : failed;

    /* Before any thread reads: what is sent again is taken back from whoever has it in hand. */
    if (transport->successor) {
        device_next_epoch(transport);
        device_resend(transport);
    }
    if (transport->want_wakeups && wakeups_open(&transport->wakeups))
        mob_log_warning("no thread that could keep idle CPUs awake");
    failed = start_threads(transport, err);
    if (!failed) {
        mob_log_info("serving: %s", transport->description);
        wait_for_stop(transport);
    }
    atomic_store(&transport->stopping, true);
    ring_stop(transport);
    device_stop(transport);
    wakeups_close(transport->wakeups);
    transport->wakeups = NULL;
    return failed;
}

enum transport_kind transport_kind(const struct transport *transport)
{
    return transport->kind;
}

const char *transport_describe(const struct transport *transport)
{
    return transport->description;
}

bool transport_passthrough(const struct transport *transport)
{
    return transport->passthrough;
}

bool transport_can_store(const struct transport *transport)
{
    return transport->can_store;
}

void transport_count(const struct transport *transport, struct transport_counters *out)
{
    *out = (struct transport_counters){
        .ring_requests = atomic_load(&transport->ring_requests),
        .device_requests = atomic_load(&transport->device_requests),
        .taken_over = atomic_load(&transport->taken_over),
    };
    ring_count((struct transport *)transport, out);
}
