/* Requests and replies in ring entries. The order of stores is what makes a kill harmless: see
 * session_layout.h. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "fs/transport_ring.h"

/* What libfuse sees as the request's unique: RING_UNIQUE, the slot, and enough of the kernel's
 * number to tell a slot's requests apart. */
static uint64_t shown_unique(unsigned slot, uint64_t commit_id)
{
    return RING_UNIQUE | (uint64_t)slot << 32 | (commit_id & 0xfffffffe);
}

/* --- requests --- */

/* Puts headers and payload into one piece. NULL if the kernel's numbers don't fit together. */
static char *assemble_request(struct ring_entry *entry, size_t *size)
{
    struct ring_queue *queue = entry->queue;
    const struct abi_ring_header *header = ring_header(entry);
    struct fuse_in_header in;
    memcpy(&in, header->in_out, sizeof(in));
    size_t payload_bytes = header->payload_bytes;
    size_t op_bytes = (size_t)in.len - sizeof(in) - payload_bytes;
    if (payload_bytes > SESSION_PAYLOAD_BYTES || in.len < sizeof(in) + payload_bytes ||
        op_bytes > ABI_RING_OP_BYTES)
        return NULL;

    char *payload = session_slot_payload(queue->ring->transport->session, entry->slot);
    char *request = queue->scratch;
    if (payload_bytes > RING_SMALL_PAYLOAD_BYTES)
        request = payload - op_bytes - sizeof(in); /* the headers go to the payload */
    else
        memcpy(request + sizeof(in) + op_bytes, payload, payload_bytes);
    in.unique = shown_unique(entry->slot, in.unique);
    memcpy(request, &in, sizeof(in));
    memcpy(request + sizeof(in), header->op_in, op_bytes);
    *size = in.len;
    return request;
}

/* Tells libfuse of an interrupt, once. */
static void tell_interrupt(struct ring_entry *entry, uint64_t target)
{
    if (atomic_exchange(&entry->told_id, target) == target)
        return;
    struct {
        struct fuse_in_header in;
        struct fuse_interrupt_in body;
    } request = {
        .in = {.len = sizeof(request),
               .opcode = FUSE_INTERRUPT,
               .unique = shown_unique(entry->slot, target) | ABI_UNIQUE_INTERRUPT},
        .body = {.unique = shown_unique(entry->slot, target)},
    };
    struct fuse_buf buffer = {.size = sizeof(request), .mem = &request};
    fuse_session_process_buf(entry->queue->ring->transport->fuse, &buffer);
}

bool ring_interrupt(struct transport *transport, uint64_t target)
{
    struct ring *ring = transport->ring;
    struct session *session = transport->session;
    unsigned used = atomic_load(&session->slots_used);
    for (unsigned i = 0; i < used; i++) {
        struct session_slot *slot = &session->slots[i];
        if (ring_load_commit_id(&session->headers[i].abi) != target ||
            atomic_load(&slot->queue) == 0 || atomic_load(&slot->replied_id) == target)
            continue;
        /* Either we see that libfuse has it, or its queue's thread will see this: both are
         * sequentially consistent. The slot keeps it for a successor. */
        atomic_store(&slot->interrupted_id, target);
        if (atomic_load(&ring->entries[i].parked_id) == target)
            tell_interrupt(&ring->entries[i], target);
        return true;
    }
    return false;
}

static bool is_answered(const struct ring_entry *entry, uint64_t id)
{
    return atomic_load_explicit(&ring_slot(entry)->replied_id, memory_order_acquire) == id;
}

void ring_reply_empty(struct ring_entry *entry, int error)
{
    struct fuse_out_header out = {
        .len = sizeof(out),
        .error = error,
        .unique = shown_unique(entry->slot, atomic_load(&entry->commit_id)),
    };
    struct iovec iov = {&out, sizeof(out)};
    (void)ring_reply(entry->queue->ring->transport, &iov, 1);
}

static void refuse_malformed(struct ring_entry *entry)
{
    const struct fuse_in_header *in = (const void *)ring_header(entry)->in_out;
    mob_log_error("a request of the ring has impossible lengths: opcode %u, %u bytes, payload %u",
                  in->opcode, in->len, ring_header(entry)->payload_bytes);
    ring_reply_empty(entry, -EIO);
}

/* Ten thousand opens may wait: what they need is in their headers, not in the page of payload that
 * touch_entry() mapped. Before anybody may be writing a reply there. */
static void give_back_memory(struct ring_entry *entry)
{
    struct ring_queue *queue = entry->queue;
    unsigned entries = atomic_load_explicit(&queue->entries, memory_order_relaxed);
    unsigned available = atomic_load_explicit(&queue->available, memory_order_relaxed);
    if (entries - available < RING_MANY_PARKED || ring_header(entry)->payload_bytes > 0)
        return;
    (void)madvise(session_slot_payload(queue->ring->transport->session, entry->slot),
                  SESSION_PAGE_BYTES, MADV_REMOVE);
}

void ring_take_request(struct ring_entry *entry, bool resent)
{
    struct transport *transport = entry->queue->ring->transport;
    const struct abi_ring_header *header = ring_header(entry);
    uint64_t id = ring_load_commit_id(header);
    atomic_store_explicit(&entry->commit_id, id, memory_order_relaxed);
    atomic_fetch_add_explicit(&transport->ring_requests, 1, memory_order_relaxed);
    if (resent)
        atomic_fetch_add_explicit(&transport->taken_over, 1, memory_order_relaxed);

    size_t size;
    char *request = assemble_request(entry, &size);
    if (!request) {
        refuse_malformed(entry);
        return;
    }
    const struct fuse_in_header *in = (const void *)request;
    if (in->opcode == FUSE_NOTIFY_REPLY) {
        ring_keep_spare(entry);
        return;
    }
    if (in->opcode == FUSE_OPEN || in->opcode == FUSE_RELEASE)
        ring_note_file(entry->queue, in->nodeid);
    if (in->opcode == FUSE_OPEN)
        give_back_memory(entry);
    transport_handle(transport, request, size, id, resent, entry);
    if (is_answered(entry, id))
        return;
    atomic_store(&entry->parked_id, id);
    if (atomic_load(&ring_slot(entry)->interrupted_id) == id)
        tell_interrupt(entry, id);
}

/* --- replies --- */

/* Writes the reply's bytes where they harm nothing, then says that it is whole. */
static void write_reply(struct ring_entry *entry, int32_t error, const struct iovec *body,
                        int count)
{
    struct session_slot *slot = ring_slot(entry);
    struct transport *transport = entry->queue->ring->transport;
    size_t request_bytes = ring_header(entry)->payload_bytes;
    size_t reply_bytes = 0;
    for (int i = 0; i < count; i++)
        reply_bytes += body[i].iov_len;
    size_t offset = 0;
    if (request_bytes > 0) {
        size_t larger = request_bytes > reply_bytes ? request_bytes : reply_bytes;
        offset = (larger + 63) & ~(size_t)63;
    }
    if (reply_bytes > SESSION_PAYLOAD_BYTES ||
        offset + reply_bytes > SESSION_PAYLOAD_BYTES + SESSION_PAGE_BYTES) {
        mob_log_error("a reply of %zu bytes to a request of %zu is too large", reply_bytes,
                      request_bytes);
        error = -EIO;
        reply_bytes = 0;
        offset = 0;
        count = 0;
    }
    char *at = session_slot_payload(transport->session, entry->slot) + offset;
    for (int i = 0; i < count; i++) {
        memmove(at, body[i].iov_base, body[i].iov_len);
        at += body[i].iov_len;
    }
    slot->reply_error = error;
    slot->reply_bytes = (uint32_t)reply_bytes;
    slot->reply_offset = (uint32_t)offset;
    atomic_store_explicit(&slot->replied_id,
                          atomic_load_explicit(&entry->commit_id, memory_order_relaxed),
                          memory_order_release);
}

void ring_commit_reply(struct ring_entry *entry)
{
    struct session_slot *slot = ring_slot(entry);
    struct abi_ring_header *header = ring_header(entry);
    char *payload = session_slot_payload(entry->queue->ring->transport->session, entry->slot);
    if (slot->reply_offset)
        memmove(payload, payload + slot->reply_offset, slot->reply_bytes);
    header->payload_bytes = slot->reply_bytes;
    struct fuse_out_header out = {
        .len = (uint32_t)sizeof(out) + slot->reply_bytes,
        .error = slot->reply_error,
        .unique = atomic_load_explicit(&slot->replied_id, memory_order_relaxed),
    };
    memcpy(header->in_out, &out, sizeof(out));
    ring_command(entry, ABI_RING_CMD_COMMIT_AND_FETCH);
}

static void hand_over(struct ring_entry *entry)
{
    struct ring_queue *queue = entry->queue;
    pthread_mutex_lock(&queue->lock);
    bool wake = !queue->closed && !queue->handed_over;
    /* Once it is closed, the reply stays in session memory, and a successor commits it. */
    if (!queue->closed) {
        entry->next = queue->handed_over;
        queue->handed_over = entry;
    }
    pthread_mutex_unlock(&queue->lock);
    if (wake)
        ring_wake(queue);
}

void ring_commit_handed_over(struct ring_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    struct ring_entry *entry = queue->handed_over;
    queue->handed_over = NULL;
    pthread_mutex_unlock(&queue->lock);
    while (entry) {
        struct ring_entry *next = entry->next;
        ring_commit_reply(entry);
        entry = next;
    }
}

/* Replies that tell the kernel of a file begin with a fuse_entry_out. */
static void note_file_in_reply(struct ring_entry *entry)
{
    const struct session_slot *slot = ring_slot(entry);
    const struct fuse_in_header *in = (const void *)ring_header(entry)->in_out;
    if (in->opcode != FUSE_LOOKUP && in->opcode != FUSE_CREATE)
        return;
    if (slot->reply_error || slot->reply_bytes < sizeof(struct fuse_entry_out))
        return;
    const struct fuse_entry_out *reply =
        (const void *)(session_slot_payload(entry->queue->ring->transport->session, entry->slot) +
                       slot->reply_offset);
    if (reply->nodeid && S_ISREG(reply->attr.mode))
        ring_note_file(entry->queue, reply->nodeid);
}

errint_t ring_reply(struct transport *transport, const struct iovec *iov, int count)
{
    const struct fuse_out_header *out = iov[0].iov_base;
    if (out->unique & ABI_UNIQUE_INTERRUPT)
        return 0; /* libfuse has no such request: it was answered meanwhile */
    unsigned slot = (unsigned)(out->unique >> 32) & 0xffffff;
    if (slot >= SESSION_MAX_SLOTS || !transport->ring)
        return -EINVAL;
    struct ring_entry *entry = &transport->ring->entries[slot];
    uint64_t id = atomic_load_explicit(&entry->commit_id, memory_order_relaxed);
    if (!entry->queue || shown_unique(slot, id) != out->unique)
        return -ENOENT;
    write_reply(entry, out->error, iov + 1, count - 1);
    if (entry->queue == ring_own_queue) {
        note_file_in_reply(entry);
        ring_commit_reply(entry);
    } else
        hand_over(entry);
    return 0;
}
