/* Growing files: the file on disk when it is encrypted, in the layout of cipher.h.
 *
 * What is on disk is told by the state alone: block i of the content is at its place in the disk
 * file, and has the bytes of [i MiB, min((i + 1) MiB, filled)), not one more or less. Nothing is
 * read at or after `filled`: up to `moved` the content is zeros there, and the disk file may have
 * anything. But for a moment, `moved` is `filled` rounded up to a unit. So there are no blocks that
 * are holes or too short, and a head that was wiped is noticed.
 *
 * A move encrypts whole blocks behind `filled`, then notes the new state: see growing.c.
 *
 * To change a block that is on disk is to encrypt all of it anew. The server may be killed between
 * any two steps, or within one; a write of which only a part was done leaves a block that can't be
 * decrypted:
 *
 *   1 copied         The new block is written to the first place behind the moved part, which is
 *                    of no other use. Killed here: the state has nothing there, the old block is
 *                    untouched.
 *   2 redo noted     `redo` is the block, `filled` is the new one if it became longer or shorter.
 *                    From now on the block is what was copied: who reads it, reads the copy, which
 *                    was whole before the note. So its own place isn't read.
 *   3 written        To its own place. Killed here: growing_encrypted_settle() does it again, as
 *                    often as it takes, from the copy, which is not written to while it is noted:
 *                    everything that writes (1 for another block; a move, which writes where the
 *                    copy is) settles first.
 *   4 done noted     `redo` is 0: its own place counts, which was whole before the note.
 *   5 copy dropped   If that isn't done, it stays until it is written over: nothing reads it.
 *
 * Between two notes the state has for each block one place to read it from, and that place is not
 * written to between these notes. Hence at any time each block is the old one or the new one,
 * whole. A new block at `filled`, where nothing is, needs no copy: it is written to its place, and
 * then noted. A failed note leaves the old state stored and taken, and so is like a kill before it;
 * an error in 3 is like a kill there, and what comes next settles or fails.
 *
 * Readers hold the lock, and a state is taken with the lock held alone (growing_announce()): so a
 * reader also has one state from its beginning to its end. The copy is on disk and not in memory
 * because there may be none, and is as secret as the rest. */
#include <string.h>

#include "core/store/growing_internal.h"

#define BLOCK ((uint64_t)CIPHER_BLOCK_BYTES)
_Static_assert(GROWING_UNIT_BYTES % CIPHER_BLOCK_BYTES == 0, "a unit is whole blocks");

bool growing_encrypted_is_valid(const struct growing_state *state)
{
    if (state->filled > INT64_MAX / 2 || state->moved > INT64_MAX / 2 || state->torn ||
        state->head_moved || state->moved % GROWING_UNIT_BYTES)
        return false;
    uint64_t least = growing_round_up(state->filled);
    if (!state->redo)
        return state->moved == least;
    return state->moved >= least && state->redo <= (state->filled + BLOCK - 1) / BLOCK;
}

/* --- blocks --- */

static uint64_t copy_place(const struct growing *growing)
{
    return cipher_block_offset(growing->state.moved / BLOCK);
}

/* How much a block has on disk. */
static size_t block_bytes(const struct growing_state *state, uint64_t block)
{
    uint64_t begin = block * BLOCK, end = begin + BLOCK;
    if (end > state->filled)
        end = state->filled;
    return end > begin ? (size_t)(end - begin) : 0;
}

/* Bytes `begin` to `end` of what it has there. */
static errint_t read_block(const struct growing *growing, uint64_t number, size_t begin, size_t end,
                           void *out)
{
    const struct growing_state *state = &growing->state;
    struct cipher_file file = {.fd = growing->disk.fd, .number = growing->disk.file};
    struct cipher_block block = {
        .number = number,
        .place = state->redo == number + 1 ? copy_place(growing) : cipher_block_offset(number),
        .bytes = block_bytes(state, number),
    };
    errint_t error = cipher_read_block(growing->disk.key, &file, &block, begin, end, out);
    return error == -EBADMSG || error == -ENODATA ? -EIO : error;
}

/* Room for a block and its head. */
static unsigned char *new_buffer(void)
{
    return malloc(CIPHER_STRIDE_BYTES);
}

/* Step 4 and 5. */
static errint_t end_redo(struct growing *growing)
{
    struct growing_state state = growing->state;
    state.redo = 0;
    state.moved = growing_round_up(state.filled);
    errint_t error = growing_announce(growing, &state);
    if (!error && growing_disk_drop(growing, state.moved))
        return 0; /* it stays, see above */
    return error;
}

/* Step 3 and on. */
static errint_t redo(struct growing *growing, const unsigned char *encrypted)
{
    uint64_t block = growing->state.redo - 1;
    size_t bytes = CIPHER_HEAD_BYTES + block_bytes(&growing->state, block);
    errint_t error =
        mob_pwrite_full(growing->disk.fd, encrypted, bytes, (off_t)cipher_block_offset(block));
    return error ? error : end_redo(growing);
}

/* Takes what is behind the head in `buffer` as the content of the block, where `filled` is the end
 * of what is on disk. `buffer` is undefined then. */
static errint_t store_block(struct growing *growing, uint64_t block, unsigned char *buffer,
                            uint64_t filled)
{
    const struct growing_disk *disk = &growing->disk;
    struct growing_state state = growing->state;
    bool is_new = !block_bytes(&state, block);
    uint64_t place = is_new ? cipher_block_offset(block) : copy_place(growing);
    state.filled = filled;
    size_t bytes = block_bytes(&state, block);
    errint_t error = cipher_encrypt_block(disk->key, disk->file, block, buffer, bytes);
    if (!error)
        error = mob_pwrite_full(disk->fd, buffer, CIPHER_HEAD_BYTES + bytes, (off_t)place);
    if (!error && !is_new)
        state.redo = block + 1;
    if (!error)
        error = growing_announce(growing, &state);
    return error || is_new ? error : redo(growing, buffer);
}

/* Bytes `begin` to `end` of a block become `bytes`, NULL: zeros. Nothing before it is missing. */
static errint_t change_block(struct growing *growing, unsigned char *buffer, uint64_t block,
                             size_t begin, size_t end, const void *bytes)
{
    unsigned char *content = buffer + CIPHER_HEAD_BYTES;
    uint64_t filled = growing->state.filled, until = block * BLOCK + end;
    size_t has = block_bytes(&growing->state, block);
    errint_t error =
        has && (begin > 0 || end < has) ? read_block(growing, block, 0, has, content) : 0;
    if (error)
        return error;
    if (begin > has)
        memset(content + has, 0, begin - has);
    if (bytes)
        memcpy(content + begin, bytes, end - begin);
    else
        memset(content + begin, 0, end - begin);
    return store_block(growing, block, buffer, until > filled ? until : filled);
}

/* The same of a range; see above. */
static errint_t change(struct growing *growing, unsigned char *buffer, uint64_t offset,
                       uint64_t bytes, const unsigned char *from)
{
    errint_t error = 0;
    while (bytes && !error) {
        size_t begin = (size_t)(offset % BLOCK), piece = (size_t)(BLOCK - begin);
        if (piece > bytes)
            piece = (size_t)bytes;
        error = change_block(growing, buffer, offset / BLOCK, begin, begin + piece, from);
        offset += piece;
        bytes -= piece;
        if (from)
            from += piece;
    }
    return error;
}

/* What is missing up to `end` are zeros. */
static errint_t fill(struct growing *growing, unsigned char *buffer, uint64_t end)
{
    uint64_t filled = growing->state.filled;
    return filled < end ? change(growing, buffer, filled, end - filled, NULL) : 0;
}

/* --- what growing_disk.c hands on --- */

errint_t growing_encrypted_settle(struct growing *growing)
{
    const struct growing_disk *disk = &growing->disk;
    if (growing->state.intent)
        return -EBUSY;
    if (!growing->state.redo)
        return 0;
    uint64_t block = growing->state.redo - 1;
    size_t bytes = block_bytes(&growing->state, block);
    cleanup_free unsigned char *buffer = new_buffer();
    if (!buffer)
        return -ENOMEM;
    errint_t error = read_block(growing, block, 0, bytes, buffer + CIPHER_HEAD_BYTES);
    if (!error)
        error = cipher_encrypt_block(disk->key, disk->file, block, buffer, bytes);
    return error ? error : redo(growing, buffer);
}

errint_t growing_encrypted_move(const struct growing_move *move, const unsigned char *buffer,
                                const struct growing_batch *batch)
{
    struct growing *growing = move->growing;
    const struct growing_disk *disk = &growing->disk;
    unsigned char *encrypted = move->mover->buffer + GROWING_BATCH_BYTES;
    uint64_t first = batch->offset / BLOCK;
    errint_t error = fill(growing, encrypted, batch->offset);
    for (uint64_t i = 0; i * BLOCK < batch->bytes && !error; i++) {
        size_t done = (size_t)(i * BLOCK), left = batch->bytes - done;
        size_t bytes = left < BLOCK ? left : CIPHER_BLOCK_BYTES;
        unsigned char *place = encrypted + cipher_block_offset(i);
        memcpy(place + CIPHER_HEAD_BYTES, buffer + done, bytes);
        error = cipher_encrypt_block(disk->key, disk->file, first + i, place, bytes);
    }
    return error ? error
                 : growing_write_through(move, encrypted, (size_t)cipher_file_bytes(batch->bytes),
                                         cipher_block_offset(first));
}

errint_t growing_encrypted_read(const struct growing *growing, void *buffer, size_t bytes,
                                uint64_t offset)
{
    unsigned char *out = buffer;
    errint_t error = 0;
    for (size_t done = 0; done < bytes && !error;) {
        uint64_t at = offset + done, block = at / BLOCK;
        size_t has = block_bytes(&growing->state, block), begin = (size_t)(at % BLOCK);
        size_t piece = (size_t)(BLOCK - begin), there;
        if (piece > bytes - done)
            piece = bytes - done;
        there = has <= begin ? 0 : has - begin < piece ? has - begin : piece;
        if (there)
            error = read_block(growing, block, begin, begin + there, out + done);
        memset(out + done + there, 0, piece - there);
        done += piece;
    }
    if (error)
        memset(buffer, 0, bytes);
    return error;
}

errint_t growing_encrypted_write(struct growing *growing, const void *buffer, size_t bytes,
                                 uint64_t offset)
{
    cleanup_free unsigned char *block = new_buffer();
    errint_t error = block ? fill(growing, block, offset - offset % BLOCK) : -ENOMEM;
    return error ? error : change(growing, block, offset, bytes, buffer);
}

errint_t growing_encrypted_clear(struct growing *growing, uint64_t offset, uint64_t bytes)
{
    uint64_t filled = growing->state.filled;
    if (offset >= filled)
        return 0;
    cleanup_free unsigned char *block = new_buffer();
    return block ? change(growing, block, offset, bytes < filled - offset ? bytes : filled - offset,
                          NULL)
                 : -ENOMEM;
}

errint_t growing_encrypted_cut(struct growing *growing, uint64_t size)
{
    struct growing_state state = growing->state;
    size_t rest = (size_t)(size % BLOCK);
    if (state.filled <= size)
        return 0;
    errint_t error = growing_encrypted_settle(growing);
    if (error)
        return error;
    if (rest) {
        cleanup_free unsigned char *block = new_buffer();
        error =
            block ? read_block(growing, size / BLOCK, 0, rest, block + CIPHER_HEAD_BYTES) : -ENOMEM;
        return error ? error : store_block(growing, size / BLOCK, block, size);
    }
    state = growing->state;
    state.filled = size;
    state.moved = growing_round_up(size);
    error = growing_announce(growing, &state);
    return error ? error : growing_disk_drop(growing, state.moved);
}

errint_t growing_encrypted_finish(struct growing *growing, uint64_t size)
{
    cleanup_free unsigned char *block = new_buffer();
    errint_t error = block ? growing_encrypted_cut(growing, size) : -ENOMEM;
    if (!error)
        error = fill(growing, block, size);
    if (!error && ftruncate(growing->disk.fd, (off_t)cipher_file_bytes(size)) < 0)
        error = -errno;
    return error;
}
