/* A request of the copying engine, carried out by pread or pwrite: where there is no io_uring, and
 * for the side that is in memory, where the call is a mere copy. */
#include "core/store/spill_io_internal.h"

int spill_plain_request(const struct spill_block *block)
{
    uint8_t *data = spill_block_data(block);
    size_t bytes = block->end - block->start;
    off_t offset = spill_block_offset(block);
    ssize_t result = block->writes ? pwrite(block->fd, data, bytes, offset)
                                   : pread(block->fd, data, bytes, offset);
    return result < 0 ? -errno : (int)result;
}
