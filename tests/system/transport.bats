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

# reads_of COMMAND...: the READs that the daemon has while it runs.
reads_of() {
    local before
    before=$(requests READ)
    "$@" >/dev/null
    echo $(($(requests READ) - before - 1))
}

kernel_before() { [[ $(printf '%s\n' "$1" "$(uname -r)" | sort -V | head -n 1) != "$1" ]]; }

@test "a small object comes with its first open, a larger one is asked for" {
    local size
    if kernel_before 6.12; then skip "needs Linux 6.12"; fi
    for size in 1 4095 4096 4097 10240 32768; do
        bytes "$size" "$size" | put "first-$size"
        equals "$(reads_of cat "$MNT/staging/first-$size")" 0 "READs of $size bytes"
        same "$MNT/staging/first-$size" <(bytes "$size" "$size")
    done
    bytes 32769 | put first-larger
    [[ $(reads_of cat "$MNT/staging/first-larger") -ge 1 ]]
    same "$MNT/staging/first-larger" <(bytes 32769)
}

# racing_objects COUNT: makes staging/race-N of several sizes, and prints what readrace wants of them.
racing_objects() {
    local i size
    for ((i = 0; i < $1; i++)); do
        size=$((1 + i * 7919 % 40000))
        bytes "$size" "$i" | put "race-$i"
        echo "$i $size $MNT/objects/$(id_of "race-$i")"
    done
}

@test "an object that many open for the first time at once has its content for each of them" {
    local round
    for round in 1 2 3; do
        racing_objects 200 >"$BATS_TEST_TMPDIR/race"
        equals "$(within 30 readrace "$ROOM/random" 4 1 <"$BATS_TEST_TMPDIR/race")" 800
        rm "$MNT"/staging/race-*
    done
}

@test "and when the server is killed while they read, and all names are looked up again" {
    local round
    racing_objects 100 >"$BATS_TEST_TMPDIR/race"
    background bash -c 'exec readrace "$1" 4 200 <"$2" >"$3"' - "$ROOM/random" "$BATS_TEST_TMPDIR/race" \
        "$BATS_TEST_TMPDIR/out"
    for ((round = 0; round < 5; round++)); do
        kill -KILL "$(node daemon pid)"
        within 20 cat "$MNT"/nodes/*/daemon >/dev/null
        remember_daemon
    done
    await
    equals "$(cat "$BATS_TEST_TMPDIR/out")" 80000
    rm "$MNT"/staging/race-*
}
