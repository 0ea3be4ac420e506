#!/usr/bin/env bats
# The command: each subcommand with its main options, its JSON, its errors and exit codes (SPEC.md 6).
# shellcheck disable=SC2002,SC2012,SC2016,SC2030,SC2031,SC2314,SC2315

load helper

# Exit codes of sysexits(3).
EX_USAGE=64 EX_DATAERR=65 EX_NOINPUT=66 EX_UNAVAILABLE=69 EX_CANTCREAT=73 EX_TEMPFAIL=75

is_json() { jq -e . >/dev/null <<<"$1" || {
    echo "no JSON: $1"
    return 1
}; }

# --- help and usage ---

@test "help lists the subcommands, and each one's help has usage and an example" {
    local name
    exits 0 mobula --help
    for name in up down status put get wait run submit map logs cancel ls stat doctor; do
        matches "$output" "(^|[^a-z])$name([^a-z]|$)"
    done
    for name in up down status put get wait run submit map logs cancel ls stat doctor; do
        exits 0 mobula "$name" --help
        matches "$output" "Usage: mobula $name"
        matches "$output" 'Example'
    done
    exits 0 mobula --version
    matches "$output" '[0-9]+\.[0-9]+'
}

@test "the shell completes each option that a command's help has" {
    # shellcheck disable=SC2034 # what bash gives a completion
    local command COMP_WORDS COMP_CWORD=2 COMPREPLY
    # shellcheck source=/dev/null
    source "$BATS_TEST_DIRNAME/../../tools/mobula.bash-completion"
    for command in $(mobula --help | sed -n -E '/^Example/q; s/^  ([a-z]+) .*/\1/p'); do
        COMP_WORDS=(mobula "$command" --)
        _mobula
        equals "$(printf '%s\n' "${COMPREPLY[@]}" | sort)" \
            "$( (echo --help; mobula "$command" --help | grep -oE '^ +(-., )?--[a-z-]+' | grep -oE -e '--.*') | sort -u)" \
            "options of $command"
    done
}

@test "bad usage exits 64 and names the option" {
    exits $EX_USAGE mobula
    exits $EX_USAGE mobula no-such-command
    matches "$output" 'no-such-command'
    exits $EX_USAGE m get --no-such-option
    matches "$output" 'no-such-option'
    exits $EX_USAGE m get
    exits $EX_USAGE m wait -n many x
    matches "$output" 'many'
    exits $EX_USAGE m run
    exits $EX_USAGE m run --cpus none -- true
    matches "$output" 'cpus'
    exits $EX_USAGE mobula up
    exits $EX_USAGE mobula up "$BATS_TEST_TMPDIR" --memory lots
    matches "$output" 'memory'
    exits $EX_USAGE mobula up "$BATS_TEST_TMPDIR" --transport pigeon
    matches "$output" 'transport'
}

# --- finding the mount ---

@test "the mount is found from --mount, then MOBULA, then the directory one stands in" {
    local id
    id=$(echo x | m put)
    exits 0 mobula get --mount "$MNT" "$id"
    equals "$output" x
    exits 0 env MOBULA="$MNT" mobula get "$id"
    equals "$output" x
    exits 0 bash -c 'cd "$1/staging" && mobula get "$2"' - "$MNT" "$id"
    equals "$output" x
    # --mount goes before MOBULA.
    exits 0 env MOBULA=/nowhere mobula get --mount "$MNT" "$id"
    equals "$output" x
}

@test "where there are several mounts, the sentence has whole paths" {
    local mnt path
    mnt=$ROOM/$(printf '%0240d' 0)
    mkdir "$mnt"
    up "$mnt" "$ROOM/long-state"
    remember_daemon "$mnt"
    cd /
    exits $EX_NOINPUT mobula ls
    matches "$output" "which mount\\? There are .*/.*: choose with --mount"
    while read -r path; do
        grep -q " $path [^-]* - fuse.mobula " /proc/self/mountinfo
    done < <(sed -E 's/.*There are //; s/( and more)?: choose.*//; s/, /\n/g' <<<"$output")
    within 20 mobula down "$mnt"
}

@test "a mount that isn't one is refused with a sentence" {
    run mobula status --mount "$BATS_TEST_TMPDIR"
    [[ $status -ne 0 ]]
    matches "$output" "$BATS_TEST_TMPDIR"
    run env MOBULA=/no/such/mount mobula ls
    [[ $status -ne 0 ]]
    matches "$output" '/no/such/mount'
}

# --- status ---

@test "status shows node, transport, memory, objects, jobs and the processes" {
    exits 0 m status
    matches "$output" "$(node daemon pid)"
    matches "$output" "$(node daemon keeper_pid)"
    matches "$output" "$MOBULA_TEST_TRANSPORT"
    exits 0 mobula status "$MNT" --json
    is_json "$output"
    equals "$(jq -r '[.. | objects | select(has("keeper_pid")) | .pid][0]' <<<"$output")" "$(node daemon pid)"
    matches "$(node daemon transport)" "^$MOBULA_TEST_TRANSPORT"
    if is_root; then
        equals "$(node daemon passthrough)" yes
    else
        equals "$(node daemon passthrough)" no
    fi
}

# --- status, stat and doctor on what a daemon says, played by files ---

# play_mount DIRECTORY: looks like a mount; nodes/NODE/memory says what is on standard input.
play_mount() {
    mkdir -p "$1"/{objects,staging,run,jobs,nodes/0123456789abcdef}
    cat >"$1/nodes/0123456789abcdef/memory"
}

spill_lines() { # IO PENDING ERRORS DAMAGED
    printf '%s\n' 'budget_bytes 268435456' 'used_bytes 214748364' 'inline_bytes 0' \
        'disk_budget_bytes 42949672960' 'disk_used_bytes 1288490188' 'disk_free_bytes 41661182772' \
        "spilling_bytes $2" 'spilled_bytes 3328599654' 'restored_bytes 0' "spill_errors $3" \
        "damaged_objects $4" "spill_io $1"
}

@test "status shows what is on disk, and what is pending or wrong only where there is any" {
    local mnt=$BATS_TEST_TMPDIR/played
    spill_lines io_uring 0 0 0 | play_mount "$mnt"
    echo 'disk 7' >"$mnt/nodes/0123456789abcdef/objects"
    exits 0 mobula status "$mnt"
    matches "$output" 'disk +1\.2 GiB of 40\.0 GiB used, 38\.8 GiB free \(spilled 3\.1 GiB, restored 0 B; io_uring\)'
    matches "$output" '7 disk'
    run ! grep -E 'pending|errors|damaged' <(grep '^disk' <<<"$output")
    spill_lines 'pread and pwrite (io_uring: Operation not permitted)' 12582912 2 1 | play_mount "$mnt"
    exits 0 mobula status "$mnt"
    matches "$output" '12\.0 MiB pending \('
    matches "$output" 'pread and pwrite \(io_uring: Operation not permitted\)'
    matches "$output" '2 errors while spilling, 1 damaged object:'
    exits 0 mobula status "$mnt" --json
    equals "$(jq '.nodes[0].memory.spilling_bytes' <<<"$output")" 12582912
}

@test "status says that nothing is spilled, and nothing of an older daemon's disk" {
    local mnt=$BATS_TEST_TMPDIR/played
    spill_lines none 0 0 0 | play_mount "$mnt"
    exits 0 mobula status "$mnt"
    matches "$output" 'disk +no spilling'
    printf 'budget_bytes 1048576\nused_bytes 0\ninline_bytes 0\n' | play_mount "$mnt"
    printf 'ready 0\ninline 0\nmemory 0\n' >"$mnt/nodes/0123456789abcdef/objects"
    exits 0 mobula status "$mnt"
    run ! grep disk <<<"$output"
}

@test "stat shows the place of an object on disk, and what is damaged" {
    local mnt=$BATS_TEST_TMPDIR/played id=0123456789abcdef000000000000000a00000000
    spill_lines io_uring 0 0 1 | play_mount "$mnt"
    echo x >"$mnt/objects/$id"
    setfattr -n user.mobula.state -v ready "$mnt/objects/$id" || skip "no user attributes here"
    setfattr -n user.mobula.tier -v disk "$mnt/objects/$id"
    setfattr -n user.mobula.place -v /disk/spill/a "$mnt/objects/$id"
    setfattr -n user.mobula.error -v 'block 3 is damaged' "$mnt/objects/$id"
    exits 0 mobula stat --mount "$mnt" "$id"
    matches "$output" 'tier +disk'
    matches "$output" 'place +/disk/spill/a'
    matches "$output" 'error +block 3 is damaged'
    exits 0 mobula stat --mount "$mnt" --json "$id"
    equals "$(jq -r .place <<<"$output")" /disk/spill/a
}

@test "doctor finds a refused ring and a spill directory that is gone, where a daemon spills" {
    local mnt=$BATS_TEST_TMPDIR/played node gone=$BATS_TEST_TMPDIR/gone
    node=$mnt/nodes/0123456789abcdef
    spill_lines 'pread and pwrite (io_uring: Operation not permitted)' 0 0 0 | play_mount "$mnt"
    mkfifo "$BATS_TEST_TMPDIR/never"
    background bash -c 'read -r <>"'"$BATS_TEST_TMPDIR"'/never"; :' mobulad "$mnt" --spill "$gone" --spill="$mnt/run"
    printf 'pid %d\nkeeper_pid %d\nstate_dir %s\n' $! $! "$BATS_TEST_TMPDIR" >"$node/daemon"
    wait_until '[[ $(tr "\0" " " </proc/'$!'/cmdline) == *mobulad* ]]'
    run mobula doctor --mount "$mnt" --json
    matches "$(jq -r '.checks[] | select(.check == "spill I/O") | .status + " " + .text' <<<"$output")" \
        '^warn .*played: by pread and pwrite \(io_uring: Operation not permitted\)'
    equals "$(jq -r '.checks[] | select(.check == "spill") | select(.text | contains("gone")) | .status' <<<"$output")" fail
    equals "$(jq -r '.checks[] | select(.text | contains("played/run")) | .check' <<<"$output")" spill
    spill_lines io_uring 0 0 0 >"$node/memory"
    run mobula doctor --mount "$mnt" --json
    equals "$(jq -r '.checks[] | select(.check == "spill I/O") | .status' <<<"$output")" ok
    spill_lines none 0 0 0 >"$node/memory"
    run mobula doctor --mount "$mnt" --json
    matches "$(jq -r '.checks[] | select(.check == "spill I/O") | .text' <<<"$output")" 'off'
    equals "$(jq '[.checks[] | select(.text | contains("gone"))] | length' <<<"$output")" 0
}

@test "doctor finds a spill directory in memory" {
    # The default one, in the state directory.
    [[ $(stat -f -c %T /dev/shm) == tmpfs ]] || skip "/dev/shm is no tmpfs"
    run mobula doctor --mount "$MNT" --state "/dev/shm/mobula-test-$BASHPID" --json
    equals "$(jq -r '.checks[] | select(.check == "spill") | select(.text | startswith("/dev/shm")) | .status' <<<"$output")" warn
    matches "$output" 'is in memory: what is spilled there frees none'
}

# --- put and get ---

@test "put prints the ID, get prints the content" {
    local id
    id=$(echo hello | m put)
    matches "$id" '^[0-9a-f]{40}$'
    equals "$(m get "$id")" hello
    equals "$(cat "$MNT/objects/$id")" hello
    # Its name is its ID.
    equals "$(id_of "$id")" "$id"
    equals "$(find "$MNT/staging" -name '.put*')" ""
}

@test "put takes files, a name, and keeps the executable bit" {
    bytes 3000000 >"$BATS_TEST_TMPDIR/large"
    printf '#!/bin/sh\necho ran\n' >"$BATS_TEST_TMPDIR/script"
    chmod 755 "$BATS_TEST_TMPDIR/script"
    exits 0 m put "$BATS_TEST_TMPDIR/large" "$BATS_TEST_TMPDIR/script"
    equals "${#lines[@]}" 2
    same "$BATS_TEST_TMPDIR/large" "$MNT/objects/${lines[0]}"
    equals "$("$MNT/objects/${lines[1]}")" ran
    exits 0 m put "$BATS_TEST_TMPDIR/large" --name put-named
    equals "$output" "$(id_of put-named)"
    exits 0 m put --name put-named - <"$BATS_TEST_TMPDIR/script"
    equals "$(digest "$MNT/staging/put-named")" "$(digest "$BATS_TEST_TMPDIR/script")"
    exits 0 m put --json "$BATS_TEST_TMPDIR/script"
    is_json "$output"
    matches "$output" '[0-9a-f]{40}'
    exits $EX_CANTCREAT m put "$BATS_TEST_TMPDIR/script" --name no-such-dir/x
    matches "$output" "no-such-dir/x: there is no such directory"
    exits $EX_CANTCREAT m put "$BATS_TEST_TMPDIR/script" --name "$(printf '%0256d' 0)"
    exits $EX_NOINPUT m put "$BATS_TEST_TMPDIR/no-such-file"
}

@test "put --ref holds other objects" {
    local inner outer
    inner=$(echo inner | m put)
    outer=$(echo outer | m put --ref "$inner")
    rm "$MNT/staging/$inner"
    equals "$(cat "$MNT/objects/$inner")" inner
    equals "$(attribute refs "$MNT/objects/$outer" | tr -d '\n')" "$inner"
    run m put --ref 0123456789012345678901234567890123456789 "$BATS_TEST_FILENAME"
    [[ $status -ne 0 ]]
    matches "$output" '0123456789012345678901234567890123456789'
}

@test "put of what can't be read says so and leaves nothing behind" {
    ls -A "$MNT/staging" >"$BATS_TEST_TMPDIR/before"
    exits $EX_NOINPUT m put "$BATS_TEST_TMPDIR/no-such-file"
    matches "$output" 'no-such-file'
    run m put "$BATS_TEST_TMPDIR"
    [[ $status -ne 0 ]]
    equals "$(ls -A "$MNT/staging" | diff "$BATS_TEST_TMPDIR/before" -)" ""
}

@test "get takes an ID, a name, a job, and writes to a file whole or not at all" {
    echo content | put get-me
    bytes 3000000 | put get-large
    equals "$(m get get-me)" content
    equals "$(m get "$(id_of get-me)")" content
    exits 0 m get get-large -o "$BATS_TEST_TMPDIR/out"
    same "$MNT/staging/get-large" "$BATS_TEST_TMPDIR/out"
    equals "$(find "$BATS_TEST_TMPDIR" -name 'out?*')" ""
    drop get-job '{"command": ["echo", "of a job"]}'
    equals "$(m get get-job)" "of a job"
    equals "$(m get "$(job get-job)")" "of a job"
}

@test "get of what doesn't exist exits 66, of a failed result says why" {
    exits $EX_NOINPUT m get 0123456789012345678901234567890123456789
    exits $EX_NOINPUT m get no-such-name
    matches "$output" 'no-such-name'
    drop get-fails '{"command": ["sh", "-c", "exit 6"]}'
    run m get get-fails
    [[ $status -ne 0 && $status -ne 137 ]]
    matches "$output" "6"
}

@test "get --timeout gives up with 75 on a pending object" {
    gate get-gate
    exits $EX_TEMPFAIL m get get-gate --timeout 0.1
    open_gate get-gate late
    equals "$(m get get-gate --timeout 10)" late
}

@test "get to a full disk is an error" {
    if [[ -c /dev/full ]]; then
        echo x | put full
        run bash -c 'MOBULA="$1" mobula get full >/dev/full' - "$MNT"
        [[ $status -ne 0 ]]
        run bash -c 'MOBULA="$1" mobula ls >/dev/full' - "$MNT"
        [[ $status -ne 0 ]]
    fi
}

# --- wait ---

@test "wait prints what is ready, as it becomes ready" {
    local ready
    ready=$(echo x | m put)
    gate wait-gate
    equals "$(m wait "$ready")" "$ready"
    equals "$(m wait -n 1 "$ready" "$(result wait-gate)")" "$ready"
    exits $EX_TEMPFAIL m wait --timeout 0.1 "$ready" "$(result wait-gate)"
    matches "$output" "$ready"
    background bash -c 'MOBULA="$1" mobula wait "$2" "$3" >"$4"' - "$MNT" "$(result wait-gate)" "$ready" "$BATS_TEST_TMPDIR/out"
    local pid=$!
    wait_until grep -qs "$ready" "$BATS_TEST_TMPDIR/out"
    open_gate wait-gate
    wait "$pid"
    equals "$(cat "$BATS_TEST_TMPDIR/out")" "$ready"$'\n'"$(result wait-gate)"
    # A job's ID stands for its result; IDs come by standard input, too.
    equals "$(printf '%s\n' "$(job wait-gate)" | m wait -)" "$(job wait-gate)"
}

@test "wait says by its name which one failed or was refused, and waits for the others" {
    gate wait-for-me
    drop wait-refused '{"command": "true"}'
    drop wait-failed '{"command": ["false"]}'
    ends wait-failed failed
    background bash -c 'MOBULA="$1" mobula wait --json wait-refused wait-failed wait-for-me >"$2"; echo "$?" >>"$2"' \
        - "$MNT" "$BATS_TEST_TMPDIR/out"
    local pid=$!
    exits $EX_TEMPFAIL m wait --timeout 0 wait-refused wait-failed wait-for-me
    matches "$output" "mobula wait: wait-refused: job .* has no result: line 1, column 13: command"
    matches "$output" "mobula wait: wait-failed: job .* exited with status 1"
    open_gate wait-for-me
    wait "$pid"
    equals "$(head -n -1 "$BATS_TEST_TMPDIR/out" | jq -c '[.[] | [.argument, .state]]')" \
        '[["wait-refused","failed"],["wait-failed","failed"],["wait-for-me","ready"]]'
    equals "$(tail -n 1 "$BATS_TEST_TMPDIR/out")" 1
    exits $EX_UNAVAILABLE m get wait-failed
    matches "$output" "^mobula get: wait-failed: job .* exited with status 1$"
}

@test "wait for hundreds of jobs" {
    bash -c 'mkdir "$1/run/hundreds" && cd "$1/run/hundreds" && for ((i = 0; i < 200; i++)); do echo "{\"command\": [\"true\"]}" >"$i"; done' - "$MNT"
    find "$MNT/run/hundreds" -type l -printf '%l\n' | sed 's,.*/,,' | sort >"$BATS_TEST_TMPDIR/jobs"
    m wait - <"$BATS_TEST_TMPDIR/jobs" | sort >"$BATS_TEST_TMPDIR/waited"
    same "$BATS_TEST_TMPDIR/jobs" "$BATS_TEST_TMPDIR/waited"
    rm -r "$MNT/run/hundreds"
}

# --- run ---

@test "run streams output and exits as the job did" {
    exits 0 m run -- echo hello
    equals "$output" hello
    exits 3 m run -- sh -c 'echo out; echo err >&2; exit 3'
    matches "$output" 'out'
    matches "$output" 'err'
    equals "$(m run -- sh -c 'echo out; echo err >&2' 2>/dev/null)" out
    equals "$(m run -- sh -c 'echo out; echo err >&2' 2>&1 >/dev/null)" err
    exits 127 m run -- no-such-command-anywhere
    # Nothing is left in run/.
    equals "$(find "$MNT/run" -name '.run*')" ""
}

@test "run streams while the job runs" {
    mkfifo -m 666 "$BATS_TEST_TMPDIR/step"
    background bash -c 'MOBULA="$1" mobula run -- sh -c "echo one; cat $2 >/dev/null; echo two" >"$3"' - "$MNT" "$BATS_TEST_TMPDIR/step" "$BATS_TEST_TMPDIR/out"
    local pid=$!
    wait_until grep -qs one "$BATS_TEST_TMPDIR/out"
    run ! grep -q two "$BATS_TEST_TMPDIR/out"
    within 10 bash -c 'echo >"$1"' - "$BATS_TEST_TMPDIR/step"
    wait "$pid"
    equals "$(cat "$BATS_TEST_TMPDIR/out")" $'one\ntwo'
}

@test "run takes objects as arguments, and a time limit" {
    local id
    id=$(printf '2\n1\n' | m put)
    equals "$(m run -i "$id" -- sort {})" $'1\n2'
    equals "$(m run -i "$id" -- cat)" $'2\n1'
    exits 124 m run --timeout 0.2 -- sleep 600
    equals "$(m run --cpus 0.5 -- echo half)" half
}

@test "an interrupted run cancels its job" {
    local mark=51413$RANDOM
    background env MOBULA="$MNT" mobula run -- sleep "$mark"
    local pid=$!
    wait_until '[[ -n $(pgrep -fx "sleep '"$mark"'") ]]'
    kill -TERM "$pid"
    wait_until pid_gone "$pid"
    wait_until '[[ -z $(pgrep -fx "sleep '"$mark"'") ]]'
}

# --- submit ---

@test "submit takes a spec or a script and prints the job's ID" {
    local id
    echo '{"command": ["echo", "submitted"]}' >"$BATS_TEST_TMPDIR/spec"
    id=$(m submit "$BATS_TEST_TMPDIR/spec")
    matches "$id" '^[0-9a-f]{40}$'
    equals "$(within 10 cat "$MNT/jobs/$id/result")" submitted
    id=$(m submit - <"$BATS_TEST_TMPDIR/spec")
    equals "$(m get "$id")" submitted
    m submit --name named-job "$BATS_TEST_TMPDIR/spec" >/dev/null
    equals "$(within 10 cat "$MNT/run/named-job/result")" submitted
    printf '#!/bin/sh\necho script\n' >"$BATS_TEST_TMPDIR/script"
    equals "$(m get "$(m submit "$BATS_TEST_TMPDIR/script")")" script
}

@test "submit of a bad spec says file, line and column, exits 65 and leaves nothing" {
    ls -A "$MNT/run" >"$BATS_TEST_TMPDIR/before"
    printf '{\n  "command": ["true"],\n  "colour": 1\n}\n' >"$BATS_TEST_TMPDIR/bad.json"
    exits $EX_DATAERR m submit "$BATS_TEST_TMPDIR/bad.json"
    matches "$output" 'bad\.json:3:[0-9]+: .*colour'
    equals "$(ls -A "$MNT/run" | diff "$BATS_TEST_TMPDIR/before" -)" ""
}

# --- map ---

@test "map runs a command for each argument and prints results in input order" {
    local i
    for i in 3 1 2; do
        printf 'content %s\n' "$i" >"$BATS_TEST_TMPDIR/in-$i"
    done
    exits 0 m map -- cat {} ::: "$BATS_TEST_TMPDIR/in-3" "$BATS_TEST_TMPDIR/in-1" "$BATS_TEST_TMPDIR/in-2"
    equals "$output" $'content 3\ncontent 1\ncontent 2'
    # By ID, from standard input, two at once, the first one being the slowest.
    for i in 1 2 3 4 5; do
        echo "0.$((5 - i))" | m put
    done >"$BATS_TEST_TMPDIR/ids"
    equals "$(m map -j 2 -- sh -c 'sleep $(cat $0); cat $0' {} <"$BATS_TEST_TMPDIR/ids")" $'0.4\n0.3\n0.2\n0.1\n0.0'
}

@test "map reads names that end with a zero, and drops none that it did not expect" {
    printf one >"$BATS_TEST_TMPDIR/a"
    printf two >"$BATS_TEST_TMPDIR/"$'b\nc'
    equals "$(printf '%s\0' "$BATS_TEST_TMPDIR/a" "$BATS_TEST_TMPDIR/"$'b\nc' | m map -0 cat)" onetwo
    exits $EX_DATAERR m map cat < <(printf '%s\0' "$BATS_TEST_TMPDIR/a" "$BATS_TEST_TMPDIR/a")
    matches "$output" "--null"
    exits $EX_USAGE m map cat :::+ "$BATS_TEST_TMPDIR/a"
    matches "$output" "':::\+': expected ':::'"
    exits $EX_USAGE m map cat :::: "$BATS_TEST_TMPDIR/a"
    run bash -c 'MOBULA="$1" mobula map cat ::: "$2" >/dev/full' - "$MNT" "$BATS_TEST_TMPDIR/a"
    equals "$status" 74
    matches "$output" "cannot pass on what a job wrote: No space left on device"
}

@test "map exits with the number of failures" {
    exits 2 m map -- sh -c 'grep -q good $0' {} ::: <(echo good) <(echo bad) <(echo worse)
}

# --- logs, cancel, ls, stat ---

@test "logs prints what a job has written, -f until it ends" {
    drop logs-job '{"command": ["sh", "-c", "echo out; echo err >&2"]}'
    ends logs-job succeeded
    equals "$(m logs logs-job 2>/dev/null)" out
    equals "$(m logs "$(job logs-job)" 2>&1 >/dev/null)" err
    mkfifo -m 666 "$BATS_TEST_TMPDIR/step"
    drop logs-follow '{"command": ["sh", "-c", "echo one; cat '"$BATS_TEST_TMPDIR/step"'"]}'
    background bash -c 'MOBULA="$1" mobula logs -f logs-follow >"$2"' - "$MNT" "$BATS_TEST_TMPDIR/out"
    local pid=$!
    wait_until grep -qs one "$BATS_TEST_TMPDIR/out"
    within 10 bash -c 'echo two >"$1"' - "$BATS_TEST_TMPDIR/step"
    wait "$pid"
    equals "$(cat "$BATS_TEST_TMPDIR/out")" $'one\ntwo'
    exits $EX_NOINPUT m logs no-such-job
    drop logs-refused '{"command": "true"}'
    exits 0 m logs logs-refused
    matches "$output" "mobula logs: rejected: line 1, column 13: command"
}

@test "cancel cancels jobs by name and by ID" {
    gate cancel-1
    gate cancel-2
    exits 0 m cancel cancel-1 "$(job cancel-2)"
    ends cancel-1 cancelled
    ends cancel-2 cancelled
    exits 0 m cancel cancel-1
    exits $EX_NOINPUT m cancel no-such-job
}

@test "ls lists objects and jobs, plain, long and as JSON" {
    local id
    id=$(echo listed | m put)
    drop ls-job '{"command": ["true"]}'
    ends ls-job succeeded
    grep -qx "$id" <(m ls)
    grep -qx "$id" <(m ls objects)
    grep -qx "$(job ls-job)" <(m ls jobs)
    grep -q "$id" <(m ls objects -l)
    grep -q "succeeded.*$(job ls-job)" <(m ls jobs -l)
    m ls objects --json >"$BATS_TEST_TMPDIR/json"
    jq -e . "$BATS_TEST_TMPDIR/json" >/dev/null
    grep -q "$id" "$BATS_TEST_TMPDIR/json"
    m ls jobs --json >"$BATS_TEST_TMPDIR/json"
    jq -e . "$BATS_TEST_TMPDIR/json" >/dev/null
    grep -q "$(job ls-job)" "$BATS_TEST_TMPDIR/json"
}

@test "stat shows an object and a job" {
    local id
    id=$(echo stat | m put --name stat-me)
    exits 0 m stat "$id"
    matches "$output" "$id"
    matches "$output" 'staging/stat-me'
    matches "$output" 'inline'
    matches "$output" "$(digest "$MNT/objects/$id")"
    exits 0 m stat stat-me --json
    is_json "$output"
    matches "$output" "$id"
    drop stat-job '{"command": ["echo", "x"]}'
    ends stat-job succeeded
    exits 0 m stat stat-job
    matches "$output" 'succeeded'
    exits 0 m stat "$(job stat-job)" --json
    is_json "$output"
    exits $EX_NOINPUT m stat no-such-thing
}

# --- doctor ---

@test "doctor checks the machine, in words and in JSON" {
    # Without --mount it looks at the others as well, whose disks may be full or read-only just now.
    exits 0 mobula doctor --mount "$MNT"
    matches "$output" 'fuse'
    matches "$output" 'io_uring'
    matches "$output" 'passthrough'
    matches "$output" 'ok'
    exits 0 mobula doctor --mount "$MNT" --json
    is_json "$output"
}

@test "doctor says of a mount that does not answer, and does not hang" {
    local pid
    pid=$(node daemon pid)
    kill -STOP "$pid"
    run timeout -s KILL 30 mobula doctor --mount "$MNT"
    kill -CONT "$pid"
    matches "$output" "$MNT did not answer for 5 s"
    matches "$output" 'mobula down'
    exits 0 mobula doctor --mount "$MNT"
    matches "$output" "$MNT answers"
}
