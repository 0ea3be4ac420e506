/* Wake-ups of idle CPUs, in virtual machines where they are dear.
 *
 * A client that gets its answer is put on an idle CPU if there is one. Where idle guest CPUs halt
 * at once (Linux's haltpoll driver with guest_halt_poll_ns=0, as Firecracker's guests come), each
 * such wake-up is an exit to the hypervisor and back: some 50 microseconds, several times what
 * answering took. So while requests come quickly one after the other, a PM QoS request (the
 * kernel's Documentation/power/pm_qos_interface.rst, /dev/cpu_dma_latency, root only) has idle CPUs
 * poll instead; it is dropped some 20 ms after the last. Elsewhere nothing is done. */
#ifndef MOBULA_FS_WAKEUPS_H
#define MOBULA_FS_WAKEUPS_H

#include <stdbool.h>

#include "core/base/error.h"

struct wakeups;

/* Starts a thread that sleeps until there is something to do. *out is NULL where nothing is to be
 * gained or allowed; every function here takes that. -ENOMEM, -EAGAIN (no thread). */
MOB_MUST_CHECK errint_t wakeups_open(struct wakeups **out);
void wakeups_close(struct wakeups *wakeups);

/* A request has come. By any thread that serves; costs a few nanoseconds. */
void wakeups_note(struct wakeups *wakeups);

#endif
