/* fs: handles in session memory, parked requests, passthrough registrations, node IDs. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fs/backing.h"
#include "fs/handles.h"
#include "fs/node.h"
#include "fs/waiting.h"

/* The kernel's side of passthrough, played: these stand before the library's own. It keeps the open
 * file that it is given (here: the last one). */
static int next_backing_id = 1, open_registrations, kept_fd = -1;
int transport_backing_open(struct transport *transport, int fd)
{
    (void)transport;
    if (kept_fd >= 0)
        close(kept_fd);
    kept_fd = dup(fd);
    open_registrations++;
    return next_backing_id++;
}
errint_t transport_backing_close(struct transport *transport, int backing_id)
{
    (void)transport;
    (void)backing_id;
    open_registrations--;
    return 0;
}

/* Not standard input, which a test may have been given anything as. */
static int a_file(void)
{
    static int fd = -1;
    if (fd < 0)
        fd = memfd_create("data file", MFD_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static void *new_area(void)
{
    void *area = mmap(NULL, handles_bytes(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(area != MAP_FAILED);
    return area;
}

static void a_node_id_gives_back_its_parts(void **state)
{
    (void)state;
    uint64_t node = node_id(NODE_OBJECT_LINK, 200, UINT64_C(0xfedcba987654));
    assert_int_equal(node_kind(node), NODE_OBJECT_LINK);
    assert_int_equal(node_auxiliary(node), 200);
    assert_int_equal(node_number(node), UINT64_C(0xfedcba987654));
    assert_int_equal(node_id(NODE_FIXED, 0, FIXED_ROOT), 1);
    assert_int_equal(node_kind(UINT64_MAX), NODE_KINDS);
    assert_true(node_id(NODE_JOB_OUTPUT, 1023, NODE_NUMBER_MASK) < UINT64_C(1) << 63);
}

struct found {
    int count;
    uint64_t node;
};
static void count_handle(void *argument, struct handle *handle, uint64_t fh)
{
    struct found *found = argument;
    (void)fh;
    found->count++;
    found->node = handle->node;
}

static void handles_outlive_their_server(void **state)
{
    (void)state;
    void *area = new_area();
    struct handles *handles;
    struct handle *first, *second;
    uint64_t first_fh, second_fh, fh;
    bool existed;
    assert_int_equal(handles_open(area, &handles), 0);
    assert_int_equal(handles_new(handles, 100, false, 11, 0, 1, &first, &first_fh, &existed), 0);
    assert_int_equal(
        handles_new(handles, 102, false, 12, HANDLE_WRITE, 1, &second, &second_fh, &existed), 0);
    assert_false(existed);
    handles_free(handles, first_fh);
    assert_null(handles_get(handles, first_fh));
    handles_close(handles); /* the server dies */

    assert_int_equal(handles_open(area, &handles), 0);
    struct found found = {0};
    handles_each(handles, count_handle, &found);
    assert_int_equal(found.count, 1);
    assert_int_equal(found.node, 12);
    assert_ptr_equal(handles_get(handles, second_fh), second);
    /* The same request again is the same handle; a new one gets the free slot under a new number.
     */
    assert_int_equal(handles_new(handles, 102, true, 12, 0, 1, &first, &fh, &existed), 0);
    assert_true(existed);
    assert_int_equal(fh, second_fh);
    assert_int_equal(handles_new(handles, 104, true, 13, 0, 1, &first, &fh, &existed), 0);
    assert_false(existed);
    assert_int_equal((uint32_t)fh, (uint32_t)first_fh);
    assert_true(fh != first_fh);
    assert_null(handles_get(handles, first_fh));
    handles_free(handles, first_fh); /* a release sent again: nothing happens */
    assert_non_null(handles_get(handles, fh));
    handles_close(handles);
    munmap(area, handles_bytes());
}

static void a_handle_has_one_data_file_which_closes_with_it(void **state)
{
    (void)state;
    void *area = new_area();
    struct handles *handles;
    struct handle *handle;
    struct store_file found, file = {dup(0), STORE_ENCRYPTED}, late = {dup(0), STORE_ON_DISK};
    uint64_t fh;
    bool existed;
    int first = file.fd, second = late.fd;
    assert_int_equal(handles_open(area, &handles), 0);
    assert_int_equal(handles_new(handles, 1, false, 5, 0, 1, &handle, &fh, &existed), 0);
    assert_int_equal(handles_file(handles, fh, &found), -ENOENT);
    assert_int_equal(handles_keep_file(handles, fh, &file), 0);
    assert_int_equal(handles_keep_file(handles, fh, &late), 0);
    assert_int_equal(close(second), -1); /* another was quicker */
    assert_int_equal(handles_file(handles, fh, &found), 0);
    for (const struct store_file *it = &found; it; it = it == &found ? &late : NULL) {
        assert_int_equal(it->fd, first);
        assert_int_equal(it->form, STORE_ENCRYPTED);
    }
    handles_free(handles, fh);
    assert_int_equal(close(first), -1);
    assert_int_equal(handles_file(handles, fh, &found), -EBADF);
    file.fd = dup(0);
    first = file.fd;
    assert_int_equal(handles_keep_file(handles, fh, &file), -EBADF);
    assert_int_equal(close(first), -1);
    handles_close(handles);
    munmap(area, handles_bytes());
}

static void a_data_file_has_one_registration_at_a_time(void **state)
{
    (void)state;
    void *area = new_area();
    struct handles *handles;
    struct backing *backing;
    open_registrations = 0;
    assert_int_equal(handles_open(area, &handles), 0);
    assert_int_equal(backing_open(handles_backing_slots(handles), NULL, &backing), 0);
    assert_int_equal(backing_get(backing, 7, -1), -EBADF);
    int id = backing_get(backing, 7, a_file());
    assert_true(id > 0);
    assert_int_equal(backing_get(backing, 7, -1), id);
    assert_int_equal(open_registrations, 1);
    backing_close(backing); /* the server dies; two files are open */

    assert_int_equal(backing_open(handles_backing_slots(handles), NULL, &backing), 0);
    backing_adopt(backing, 7);
    backing_adopt(backing, 7);
    assert_int_equal(backing_get(backing, 7, -1), id);
    backing_forget(backing, 7); /* the object is freed while it is open */
    backing_put(backing, 7);
    backing_put(backing, 7);
    assert_int_equal(open_registrations, 1);
    backing_put(backing, 7);
    assert_int_equal(open_registrations, 0);
    assert_int_equal(backing_known(backing, 7), 0);
    backing_close(backing);
    handles_close(handles);
    munmap(area, handles_bytes());
}

static void a_registration_keeps_no_lease_of_a_dead_server(void **state)
{
    (void)state;
    char path[] = "/tmp/mobula-unit-XXXXXX";
    void *area = new_area();
    struct handles *handles;
    struct backing *backing;
    signal(SIGIO, SIG_IGN); /* what breaking a lease sends */
    close(mkstemp(path));
    int fd = open(path, O_RDONLY);
    assert_int_equal(handles_open(area, &handles), 0);
    assert_int_equal(backing_open(handles_backing_slots(handles), NULL, &backing), 0);
    assert_true(backing_get(backing, 7, fd) > 0);
    assert_int_equal(fcntl(fd, F_SETLEASE, F_RDLCK), 0); /* "does anybody write?", and then */
    close(fd);                                           /* the server is killed */
    int writer = open(path, O_RDWR | O_NONBLOCK);
    assert_true(writer >= 0); /* EWOULDBLOCK: the lease is there, for 45 s */
    fd = open(path, O_RDONLY);
    close(writer);
    assert_int_equal(fcntl(fd, F_SETLEASE, F_WRLCK), 0); /* what is kept is no reader of it */
    close(fd);
    backing_put(backing, 7);
    backing_close(backing);
    handles_close(handles);
    munmap(area, handles_bytes());
    unlink(path);
}

static void idle_registrations_are_kept_up_to_a_limit(void **state)
{
    (void)state;
    void *area = new_area();
    struct handles *handles;
    struct backing *backing;
    open_registrations = 0;
    assert_int_equal(handles_open(area, &handles), 0);
    assert_int_equal(backing_open(handles_backing_slots(handles), NULL, &backing), 0);
    for (uint64_t file = 1; file <= 10000; file++) {
        assert_true(backing_get(backing, file, a_file()) > 0);
        backing_put(backing, file);
    }
    assert_true(open_registrations <= 4096);
    assert_true(backing_known(backing, 10000));
    assert_false(backing_known(backing, 1));
    for (uint64_t file = 1; file <= 10000; file++)
        backing_forget(backing, file);
    assert_int_equal(open_registrations, 0);
    backing_close(backing);
    handles_close(handles);
    munmap(area, handles_bytes());
}

static void a_parked_request_is_taken_once(void **state)
{
    (void)state;
    struct waiting *waiting;
    struct parked parked = {.kind = WAITING_OBJECT, .number = 5}, out;
    uint64_t id, other;
    assert_int_equal(waiting_open(&waiting), 0);
    assert_int_equal(waiting_add(waiting, &parked, &id), 0);
    assert_true(id != 0);
    assert_true(waiting_set_token(waiting, id, 77));
    assert_int_equal(waiting_count(waiting), 1);
    assert_true(waiting_take(waiting, id, &out));
    assert_int_equal(out.token, 77);
    assert_false(waiting_take(waiting, id, &out));
    assert_false(waiting_set_token(waiting, id, 78));
    assert_int_equal(waiting_add(waiting, &parked, &other), 0); /* the slot again, another ID */
    assert_true(other != id);
    assert_false(waiting_take(waiting, id, &out));
    assert_true(waiting_take(waiting, other, &out));
    waiting_close(waiting);
}

static void ten_thousand_requests_park(void **state)
{
    (void)state;
    enum { COUNT = 10000 };
    static uint64_t ids[COUNT];
    struct waiting *waiting;
    struct parked out;
    assert_int_equal(waiting_open(&waiting), 0);
    for (uint64_t i = 0; i < COUNT; i++) {
        struct parked parked = {.kind = WAITING_OBJECT, .number = i};
        assert_int_equal(waiting_add(waiting, &parked, &ids[i]), 0);
    }
    for (uint64_t i = COUNT; i-- > 0;) {
        assert_true(waiting_take(waiting, ids[i], &out));
        assert_int_equal(out.number, i);
    }
    assert_int_equal(waiting_count(waiting), 0);
    waiting_close(waiting);
}

static void a_lookup_waits_for_its_release_or_its_deadline(void **state)
{
    (void)state;
    struct waiting *waiting;
    struct parked parked = {.kind = WAITING_RELEASE, .number = 5, .deadline_ns = 100}, out;
    uint64_t id;
    assert_int_equal(waiting_open(&waiting), 0);
    assert_int_equal(waiting_add(waiting, &parked, &id), 0);
    parked.number = 6;
    parked.deadline_ns = 200;
    assert_int_equal(waiting_add(waiting, &parked, &id), 0);
    assert_false(waiting_take_for(waiting, WAITING_RELEASE, 0, 99, &out));
    assert_true(waiting_take_for(waiting, WAITING_RELEASE, 6, 0, &out));
    assert_int_equal(out.number, 6);
    assert_true(waiting_take_for(waiting, WAITING_RELEASE, 0, 150, &out));
    assert_int_equal(out.number, 5);
    assert_false(waiting_take_for(waiting, WAITING_RELEASE, 0, 1000, &out));
    waiting_close(waiting);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_node_id_gives_back_its_parts),
        cmocka_unit_test(handles_outlive_their_server),
        cmocka_unit_test(a_handle_has_one_data_file_which_closes_with_it),
        cmocka_unit_test(a_data_file_has_one_registration_at_a_time),
        cmocka_unit_test(a_registration_keeps_no_lease_of_a_dead_server),
        cmocka_unit_test(idle_registrations_are_kept_up_to_a_limit),
        cmocka_unit_test(a_parked_request_is_taken_once),
        cmocka_unit_test(ten_thousand_requests_park),
        cmocka_unit_test(a_lookup_waits_for_its_release_or_its_deadline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
