#!/usr/bin/env bats
# How requests reach the server: what must hold whichever way it is.
# shellcheck disable=SC2016,SC2314

load helper

setup_file() {
    start_mount
    echo small | put small
}

teardown() { end_test; }

# True in virtual machines whose idle CPUs halt at once, where the daemon may have them poll.
idle_cpus_halt() {
    is_root && [[ $(cat /sys/devices/system/cpu/cpuidle/current_driver 2>/dev/null) == haltpoll &&
        $(cat /sys/module/haltpoll/parameters/guest_halt_poll_ns 2>/dev/null) == 0 && -w /dev/cpu_dma_latency ]]
}

holds_latency() { find "/proc/$1/fd" -lname /dev/cpu_dma_latency 2>/dev/null | grep -q .; }

@test "while requests come, and only then, idle CPUs are kept from halting, where waking them is dear" {
    local server traffic
    server=$(node daemon pid)
    wait_until '! holds_latency '"$server"
    background bash -c 'while :; do : <"$1"; done' - "$MNT/staging/small"
    traffic=$!
    if idle_cpus_halt; then
        wait_until holds_latency "$server"
    fi
    kill -KILL "$traffic"
    wait_until pid_gone "$traffic"
    wait_until '! holds_latency '"$server"
}

@test "with --no-idle-polling nothing is held" {
    local mnt=$ROOM/no-polling server traffic
    mkdir "$mnt"
    up "$mnt" "$ROOM/no-polling-state" --no-idle-polling
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    server=$(sed -n 's/^pid //p' "$mnt"/nodes/*/daemon)
    for ((traffic = 0; traffic < 2000; traffic++)); do
        : <"$mnt/README"
        if ((traffic % 100 == 0)) && holds_latency "$server"; then return 1; fi
    done
    if holds_latency "$server"; then return 1; fi
    within 20 mobula down "$mnt"
}
