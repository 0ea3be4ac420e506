#!/usr/bin/env bats
# mobula up and down: their options, their errors and exit codes, and that nothing is left.
# shellcheck disable=SC2002,SC2012,SC2016,SC2030,SC2031,SC2314,SC2315

load helper

# Exit codes of sysexits(3).
EX_USAGE=64 EX_UNAVAILABLE=69 EX_CANTCREAT=73 EX_NOPERM=77 EX_CONFIG=78

@test "up on what is mounted already, isn't there, or is no directory, says so" {
    run up "$MNT" "$STATE"
    [[ $status -ne 0 ]]
    matches "$output" 'mounted'
    run up "$ROOM/no-such-directory" "$ROOM/no-state"
    [[ $status -ne 0 ]]
    matches "$output" 'no-such-directory'
    : >"$BATS_TEST_TMPDIR/file"
    run up "$BATS_TEST_TMPDIR/file" "$ROOM/no-state"
    [[ $status -ne 0 ]]
    matches "$output" 'director'
    # The mount that is there goes on.
    exists "$MNT/README"
}

@test "up on a state that another daemon uses says so, and leaves nothing" {
    mkdir "$ROOM/second"
    run up "$ROOM/second" "$STATE"
    [[ $status -ne 0 && $status -ne 137 ]]
    [[ -n $output ]]
    run ! is_mounted "$ROOM/second"
    wait_until '[[ -z $(pgrep -f "mobulad.*'"$ROOM/second"'") ]]'
    exists "$MNT/README"
}

@test "what isn't there yet is refused honestly" {
    mkdir "$ROOM/not-yet"
    exits $EX_UNAVAILABLE mobula up "$ROOM/not-yet" --state "$ROOM/not-yet-state" --cluster nats://127.0.0.1
    matches "$output" 'not supported yet'
    exits $EX_UNAVAILABLE mobula up "$ROOM/not-yet" --state "$ROOM/not-yet-state" --resource gpu=1
    matches "$output" 'not supported yet'
    run ! is_mounted "$ROOM/not-yet"
}

@test "down waits for who is writing, and says who; --force does not wait" {
    local mnt=$ROOM/down-mnt writer
    mkdir "$mnt"
    up "$mnt" "$ROOM/down-state"
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    background bash -c 'exec 5>"$1/staging/written"; echo x >&5; read -r <>"$2"' - "$mnt" "$(mkfifo "$BATS_TEST_TMPDIR/never" && echo "$BATS_TEST_TMPDIR/never")"
    writer=$!
    wait_until '[[ $(stat -c %s "'"$mnt"'/staging/written" 2>/dev/null) == 2 ]]'
    run within 20 mobula down "$mnt" --timeout 0.3
    [[ $status -ne 0 && $status -ne 137 ]]
    matches "$output" "written|$writer"
    is_mounted "$mnt"
    run within 20 mobula down "$mnt" --force
    equals "$status" 0
    run ! is_mounted "$mnt"
    kill -KILL "$writer"
}

@test "what was closed but can't be committed: stat, get, the file itself and down say why, at once" {
    local mnt=$ROOM/stuck-mnt reason="user.mobula.refs: word 1 is not an ID" fd
    mkdir "$mnt"
    up "$mnt" "$ROOM/stuck-state"
    remember_daemon "$mnt"
    exec {fd}>"$mnt/staging/bad"
    setfattr -n user.mobula.refs -v content "$mnt/staging/bad"
    echo nonsense >&"$fd"
    getfattr -d -m - "$mnt/staging/bad" >"$BATS_TEST_TMPDIR/before"
    exec {fd}>&- || true # it fails, but the shell may not say so
    wait_until "getfattr -n user.mobula.error '$mnt/staging/bad' >/dev/null 2>&1"
    run -1 grep user.mobula.error "$BATS_TEST_TMPDIR/before"
    matches "$(getfattr --only-values -n user.mobula.error "$mnt/staging/bad")" "^$reason"
    getfattr -d -m - "$mnt/staging/bad" | grep -q user.mobula.error
    matches "$(mobula stat --mount "$mnt" bad)" "state +failed.*$reason"
    run -69 mobula get --mount "$mnt" bad
    matches "$output" "bad: was closed, but can't be committed: $reason"
    kill -KILL "$(sed -n 's/^pid //p' "$mnt"/nodes/*/daemon)" # the next server knows it as well
    wait_until "getfattr -n user.mobula.error '$mnt/staging/bad' >/dev/null 2>&1"
    remember_daemon "$mnt"
    run within 5 mobula down "$mnt"
    equals "$status" 75
    matches "$output" "1 file was closed, but can't be committed:"
    matches "$output" "staging/bad: $reason"
    is_mounted "$mnt"
    rm "$mnt/staging/bad"
    run within 20 mobula down "$mnt"
    equals "$status $output" "0 "
}

@test "down prints nothing, stops jobs, and nothing is left; a second one is an error" {
    local mnt=$ROOM/down-mnt mark=17320$RANDOM pids pid
    mkdir -p "$mnt"
    up "$mnt" "$ROOM/down-state-2"
    pids=$(sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon)
    echo '{"command": ["sleep", "'"$mark"'"]}' >"$mnt/run/running"
    wait_until '[[ -n $(pgrep -fx "sleep '"$mark"'") ]]'
    exits 0 within 20 mobula down "$mnt"
    equals "$output" ""
    run ! is_mounted "$mnt"
    for pid in $pids; do
        pid_gone "$pid"
    done
    equals "$(pgrep -fx "sleep $mark" || true)" ""
    equals "$(grep -c "$ROOM/down-" /proc/self/mountinfo || true)" 0
    run mobula down "$mnt"
    [[ $status -ne 0 ]]
    matches "$output" 'mount'
}

@test "names and inline objects are there again after down and up" {
    local mnt=$ROOM/again-mnt id
    mkdir "$mnt"
    up "$mnt" "$ROOM/again-state"
    mkdir "$mnt/staging/directory"
    echo kept >"$mnt/staging/directory/name"
    id=$(basename "$(readlink "$mnt/staging/directory/name")")
    within 20 mobula down "$mnt"
    up "$mnt" "$ROOM/again-state"
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    equals "$(cat "$mnt/staging/directory/name")" kept
    equals "$(cat "$mnt/objects/$id")" kept
    within 20 mobula down "$mnt"
}

@test "up reads its options from a file, and the command line goes before it, the last of a kind first" {
    local mnt=$ROOM/config-mnt
    mkdir "$mnt"
    printf 'memory = 128M\ncpus = 3\nstate = %s\n' "$ROOM/config-state" >"$BATS_TEST_TMPDIR/mobula.conf"
    within 20 mobula up "$mnt" --config "$BATS_TEST_TMPDIR/mobula.conf" --cpus 2 --cpus 1 --transport "$MOBULA_TEST_TRANSPORT" 3>&- 4>&-
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    equals "$(sed -n 's/^budget_bytes //p' "$mnt"/nodes/*/memory)" 134217728
    equals "$(sed -n 's/^cpus //p' "$mnt"/nodes/*/jobs)" 1
    equals "$(sed -n 's/^state_dir //p' "$mnt"/nodes/*/daemon)" "$ROOM/config-state"
    within 20 mobula down "$mnt"
}

# arguments MNT: the command line of the daemon behind it, a word a line.
arguments() { tr '\0' '\n' </proc/"$(sed -n 's/^keeper_pid //p' "$1"/nodes/*/daemon)"/cmdline; }

@test "a spill directory or a disk budget that can't be is refused, and nothing is made" {
    local mnt=$ROOM/refused-mnt kept=$ROOM/refused-state
    mkdir "$mnt"
    exits $EX_USAGE mobula up "$mnt" --state "$kept" --spill "$mnt/below/it"
    matches "$output" '--spill: .*below/it lies in the directory'
    equals "$(ls -A "$mnt")" ""
    ln -s "$mnt" "$BATS_TEST_TMPDIR/link"
    exits $EX_USAGE mobula up "$mnt" --state "$kept" --spill "$BATS_TEST_TMPDIR/link"
    matches "$output" '--spill: '
    exits $EX_USAGE mobula up "$mnt" --state "$kept" --spill "$BATS_TEST_TMPDIR/a" --spill none
    matches "$output" "--spill: 'none'"
    exits $EX_USAGE mobula up "$mnt" --state "$kept" --spill "$BATS_TEST_TMPDIR/a" --spill "$BATS_TEST_TMPDIR/./a"
    matches "$output" '--spill: .*/a is given twice'
    # shellcheck disable=SC2046
    exits $EX_USAGE mobula up "$mnt" --state "$kept" $(printf -- '--spill x%s ' 1 2 3 4 5 6 7 8 9)
    matches "$output" "--spill: 'x9' is one too many"
    exits $EX_USAGE mobula up "$mnt" --state "$kept" --disk much
    matches "$output" "--disk: 'much'"
    exits $EX_USAGE mobula up "$mnt" --state "$kept" --disk 1K
    matches "$output" '--disk: .*at least 1M'
    exits $EX_USAGE mobula up "$mnt" --state "$kept" --spill "$BATS_TEST_TMPDIR/a/../b"
    matches "$output" "--spill: .*'\.\.'"
    gone "$BATS_TEST_TMPDIR/a"
    exits $EX_USAGE mobula up "$mnt" --state "$kept" --forget-spill ''
    matches "$output" '--forget-spill: expected a directory'
    printf 'forget-spill = /x\n' >"$BATS_TEST_TMPDIR/forget.conf"
    exits $EX_CONFIG mobula up "$mnt" --state "$kept" --config "$BATS_TEST_TMPDIR/forget.conf"
    matches "$output" "forget.conf: option 'forget-spill': no such option"
    : >"$BATS_TEST_TMPDIR/file"
    exits $EX_CANTCREAT mobula up "$mnt" --state "$kept" --spill "$BATS_TEST_TMPDIR/file"
    matches "$output" '--spill: .*file: Not a directory'
    if ! is_root; then
        mkdir -m 500 "$BATS_TEST_TMPDIR/locked"
        exits $EX_NOPERM mobula up "$mnt" --state "$kept" --spill "$BATS_TEST_TMPDIR/locked"
        matches "$output" "--spill: can't write in .*locked"
    fi
    printf 'spill = none\nspill = /x\n' >"$BATS_TEST_TMPDIR/mobula.conf"
    exits $EX_CONFIG mobula up "$mnt" --state "$kept" --config "$BATS_TEST_TMPDIR/mobula.conf"
    matches "$output" "mobula.conf: option 'spill': 'none'"
    run ! is_mounted "$mnt"
}

# Root's can be passed by others' jobs, whose outputs are in the first.
spill_mode() { if [[ $(id -u) -eq 0 ]]; then echo 711; else echo 700; fi; }

@test "up spills into the state directory unless it is told otherwise" {
    local mnt=$ROOM/spill-mnt
    mkdir "$mnt"
    up "$mnt" "$ROOM/spill-state"
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    equals "$(stat -c %a "$ROOM/spill-state/spill")" "$(spill_mode)"
    within 20 mobula down "$mnt"
    rm -rf "$ROOM/spill-state"
    up "$mnt" "$ROOM/spill-state" --spill none --disk 1G
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    gone "$ROOM/spill-state/spill"
    within 20 mobula down "$mnt"
}

@test "up takes several spill directories, from the file or all from the command line" {
    local mnt=$ROOM/spills-mnt
    mkdir "$mnt"
    printf 'spill = %s\nspill = %s\ndisk = 2G\nmemory = 64M\nstate = %s\n' "$ROOM/spill-1" \
        "$ROOM/deep/spill-2" "$ROOM/spills-state" >"$BATS_TEST_TMPDIR/mobula.conf"
    within 20 mobula up "$mnt" --config "$BATS_TEST_TMPDIR/mobula.conf" --transport "$MOBULA_TEST_TRANSPORT" 3>&- 4>&-
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    equals "$(arguments "$mnt" | grep -A1 '^--spill$' | grep /)" "$ROOM/spill-1"$'\n'"$ROOM/deep/spill-2"
    equals "$(arguments "$mnt" | grep -A1 '^--disk$' | tail -n 1)" 2G
    equals "$(stat -c %a "$ROOM/spill-1" "$ROOM/deep/spill-2")" "$(spill_mode)"$'\n'"$(spill_mode)"
    gone "$ROOM/spills-state/spill"
    within 20 mobula down "$mnt"
    rm -rf "$ROOM/spills-state" "$ROOM/spill-1" "$ROOM/deep"
    within 20 mobula up "$mnt" --config "$BATS_TEST_TMPDIR/mobula.conf" --transport "$MOBULA_TEST_TRANSPORT" \
        --spill "$ROOM/spill-3" 3>&- 4>&-
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    equals "$(arguments "$mnt" | grep -A1 '^--spill$' | grep /)" "$ROOM/spill-3"
    within 20 mobula down "$mnt"
}

@test "more memory than the machine has is a warning" {
    local mnt=$ROOM/large-mnt
    is_root || skip "an ordinary user is refused: /dev/shm has less"
    mkdir "$mnt"
    memory=100T exits 0 up "$mnt" "$ROOM/large-state"
    matches "$output" "warning: --memory: 100.0 TiB, but the machine has only "
    remember_daemon "$mnt"
    within 20 mobula down "$mnt"
}

@test "a spill directory in memory is a warning" {
    local mnt=$ROOM/in-memory-mnt place
    [[ $(stat -f -c %T /dev/shm) == tmpfs ]] || skip "/dev/shm is no tmpfs"
    mkdir "$mnt"
    place=$(mktemp -d /dev/shm/mobula-test.XXXXXX)
    echo "$place" >>"$ROOM/memory-dirs"
    exits 0 up "$mnt" "$ROOM/in-memory-state" --spill "$place/spill"
    matches "$output" "warning: --spill: $place/spill is in memory"
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    within 20 mobula down "$mnt"
    rm -rf "$place"
}

@test "mobulad by itself checks spill directories as well" {
    local mnt=$ROOM/bare-mnt kept=$ROOM/bare-state
    mkdir "$mnt"
    exits $EX_USAGE within 20 mobulad "$mnt" --state "$kept" --spill none --spill /x
    matches "$output" "--spill: no directory can stand beside 'none'"
    exits $EX_USAGE within 20 mobulad "$mnt" --state "$kept" --disk much
    matches "$output" "--disk: 'much'"
    run within 20 mobulad "$mnt" --state "$kept" --memory 64M --spill "$mnt/below"
    [[ $status -ne 0 ]]
    matches "$output" '--spill: .*below lies in the directory'
    run within 20 mobulad "$mnt" --state "$kept" --memory 64M --spill "$kept/a" --spill "$kept/./a"
    [[ $status -ne 0 ]]
    matches "$output" '--spill: .*/a is given twice'
    run ! is_mounted "$mnt"
    run ! grep -F "$kept" /proc/self/mountinfo
}

@test "up --name names the node" {
    local mnt=$ROOM/named-mnt
    mkdir "$mnt"
    up "$mnt" "$ROOM/named-state" --name Zebra
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    equals "$(cat "$mnt"/nodes/*/name)" Zebra
    within 20 mobula down "$mnt"
}

@test "up --foreground stays until it is told to end" {
    local mnt=$ROOM/foreground-mnt
    mkdir "$mnt"
    background mobula up "$mnt" --state "$ROOM/foreground-state" --memory 64M --foreground --transport "$MOBULA_TEST_TRANSPORT"
    local pid=$!
    wait_until exists "$mnt/README"
    run ! pid_gone "$pid"
    kill -TERM "$pid"
    wait "$pid" || true
    run ! is_mounted "$mnt"
    equals "$(pgrep -f "mobulad.*$mnt" || true)" ""
}
