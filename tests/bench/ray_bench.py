#!/usr/bin/env python3
"""Measures Ray on this machine: the figures of BENCH.md that Ray has too.

Each figure is the median of RUNS runs, with the smallest and the largest. Written as JSON to --json
and as lines "key TAB median TAB min TAB max TAB unit" to --tsv, which tests/bench/run merges. The
shapes follow Ray's own microbenchmark (ray/_private/ray_perf.py), so that the figures can be compared
with those that Ray publishes; where mobula measures something else too, the key says so.
"""
import argparse
import json
import statistics
import time

import numpy as np
import ray

SMALL = b"x" * 1024


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default="ray.json")
    parser.add_argument("--tsv", default="ray.tsv")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each run of a rate")
    parser.add_argument("--large-mib", type=int, default=512)
    return parser.parse_args()


def rate(function, operations, seconds):
    """Calls of `function`, each worth `operations`, a second."""
    began = time.perf_counter()
    calls = 0
    while True:
        function()
        calls += 1
        took = time.perf_counter() - began
        if took >= seconds:
            return calls * operations / took


@ray.remote
def small_value():
    return b"ok"


@ray.remote
def make_object_containing_refs(count):
    return [ray.put(1) for _ in range(count)]


@ray.remote(num_cpus=0)
class Client:
    """One of several clients that work at once."""

    def __init__(self):
        self.refs = []

    def put(self, count):
        for _ in range(count):
            ray.put(SMALL)

    def prepare(self, count):
        self.refs = [ray.put(SMALL) for _ in range(count)]

    def get(self):
        for ref in self.refs:
            ray.get(ref)


def several_clients(clients, call, operations):
    began = time.perf_counter()
    ray.get([call(client) for client in clients])
    return len(clients) * operations / (time.perf_counter() - began)


def get_cold(count):
    """Distinct objects, each got for the first time."""
    refs = [ray.put(SMALL) for _ in range(count)]
    began = time.perf_counter()
    for ref in refs:
        ray.get(ref)
    return count / (time.perf_counter() - began)


def wait_each(count):
    """ray_perf's "wait on 1k refs": submits, then one ray.wait() a reference."""
    not_ready = [small_value.remote() for _ in range(count)]
    for _ in range(count):
        _ready, not_ready = ray.wait(not_ready)


def wait_all(count):
    """The same with a single ray.wait() for all of them, after the tasks were submitted."""
    refs = [small_value.remote() for _ in range(count)]
    began = time.perf_counter()
    ray.wait(refs, num_returns=count)
    return 1 / (time.perf_counter() - began)


def put_large(array):
    began = time.perf_counter()
    ref = ray.put(array)
    took = time.perf_counter() - began
    del ref
    time.sleep(0.3)  # plasma frees behind our back
    return array.nbytes / took / 1e9


def get_large(ref):
    began = time.perf_counter()
    array = ray.get(ref)
    array[::512].sum()  # touches each page (of float64, 4 KiB)
    return array.nbytes / (time.perf_counter() - began) / 1e9


def measure(options):
    results = {}

    def figure(key, unit, function):
        values = [function() for _ in range(options.runs)]
        results[key] = {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "unit": unit,
        }
        print(f"{key:24} {statistics.median(values):12.2f} {unit}", flush=True)

    seconds = options.seconds
    ray.get([small_value.remote() for _ in range(200)])  # starts the workers
    kept = ray.put(SMALL)
    figure("put_small", "1/s", lambda: rate(lambda: ray.put(SMALL), 1, seconds))
    figure("get_small_warm", "1/s", lambda: rate(lambda: ray.get(kept), 1, seconds))
    figure("get_small_cold", "1/s", lambda: get_cold(3000))
    for count in (2, 4):
        clients = [Client.remote() for _ in range(count)]
        ray.get([client.put.remote(10) for client in clients])
        figure(f"put_small_{count}", "1/s",
               lambda: several_clients(clients, lambda c: c.put.remote(1000), 1000))
        ray.get([client.prepare.remote(2000) for client in clients])
        figure(f"get_small_{count}", "1/s",
               lambda: several_clients(clients, lambda c: c.get.remote(), 2000))
        for client in clients:
            ray.kill(client)
    figure("job_sync", "1/s",
           lambda: rate(lambda: ray.get(small_value.remote()), 1, seconds))
    figure("jobs_async", "1/s",
           lambda: rate(lambda: ray.get([small_value.remote() for _ in range(1000)]), 1000,
                        seconds))
    figure("wait_1k", "1/s", lambda: rate(lambda: wait_each(1000), 1, seconds))
    figure("wait_1k_at_once", "1/s", lambda: wait_all(1000))
    holder = make_object_containing_refs.remote(10000)
    ray.wait([holder], fetch_local=True)
    figure("refs_10k", "1/s", lambda: rate(lambda: ray.get(holder), 1, seconds))
    del holder
    array = np.random.rand(options.large_mib * (1 << 20) // 8)
    figure("put_large", "GB/s", lambda: put_large(array))
    ref = ray.put(array)
    figure("get_large_mmap", "GB/s", lambda: get_large(ref))
    return results


def main():
    options = parse_arguments()
    ray.init(num_cpus=4, object_store_memory=3 << 30, include_dashboard=False,
             logging_level="ERROR", log_to_driver=False)
    try:
        results = measure(options)
    finally:
        ray.shutdown()
    results["ray"] = {"version": ray.__version__}
    with open(options.json, "w", encoding="utf-8") as out:
        json.dump(results, out, indent=1)
        out.write("\n")
    with open(options.tsv, "w", encoding="utf-8") as out:
        for key, value in results.items():
            if "median" in value:
                out.write(f"{key}\t{value['median']:.6g}\t{value['min']:.6g}\t"
                          f"{value['max']:.6g}\t{value['unit']}\n")


if __name__ == "__main__":
    main()
