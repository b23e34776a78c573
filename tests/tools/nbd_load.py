"""A guest's load on an NBD export, by libnbd: shares no code with RepHub.

Run by the system's Python (python3-libnbd), steered by one JSON document a line on standard input, one answer a line
on standard output:

    {"op": "write", "start": 0, "length": 1, "seed": 7}      data are random.Random(seed).randbytes(length)
    {"op": "zero" | "trim", "start": 0, "length": 1}
    {"op": "read", "start": 0, "length": 1}                  → {"hex": …}
    {"op": "numbered", "depth": 8, "count": 100, "first": 1, "sectors": 4096, "seed": 7}
        sector-aligned writes at the depth; each sector repeats its request's number as 8 bytes little-endian;
        → {"requests": [[number, sector, sectors, sent, answered], …]}, times by one logical clock
    {"op": "strided", "stride": 65536, "length": 4096, "count": 100, "per_second": 500, "seed": 7}
        one write after the other, the n-th at n * stride, not faster than that; → {"ended_at": seconds since the Unix epoch}
    {"op": "scattered", "size": 1048576, "length": 4096, "depth": 4, "per_second": 300, "seconds": 5, "seed": 7}
        random data at random places, at the depth, not faster than that; → {"written": how many}
    {"op": "chains", "others": [uri], "chains": 16, "sector": 0, "seconds": 5}
        dependent writes across disks: in each chain, write i is sent, to disk (i - 1) % disks, only after write i - 1 was
        answered; it fills sector `sector + 8 * chain` with i; → {"answered": [last i answered of each chain]};
        with "until": path, it ends sooner, once that file exists; with "pause": seconds, it rests between two looks
"""

import json
import pathlib
import random
import select
import sys
import time

import nbd

SECTOR = 512


def numbered(handle, order):
    """Keep `depth` requests in flight; the logical clock ticks at each sending and each answer."""
    rng = random.Random(order["seed"])
    clock = 0
    requests = []
    flying = {}
    for number in range(order["first"], order["first"] + order["count"]):
        while len(flying) >= order["depth"]:
            handle.poll(-1)
            for cookie in [c for c in flying if handle.aio_command_completed(c)]:
                clock += 1
                flying.pop(cookie)[4] = clock
        sectors = rng.choice((1, 1, 1, 2, 8, 8, 8, 64, 256))
        sector = rng.randrange(0, order["sectors"] - sectors)
        buffer = nbd.Buffer.from_bytearray(bytearray(number.to_bytes(8, "little") * (sectors * SECTOR // 8)))
        clock += 1
        request = [number, sector, sectors, clock, None, buffer]
        requests.append(request)
        flying[handle.aio_pwrite(buffer, sector * SECTOR)] = request
    while flying:
        handle.poll(-1)
        for cookie in [c for c in flying if handle.aio_command_completed(c)]:
            clock += 1
            flying.pop(cookie)[4] = clock
    return {"requests": [request[:5] for request in requests]}


def strided(handle, order):
    """Each place once, at a pace."""
    data = random.Random(order["seed"]).randbytes(order["length"])
    began = time.monotonic()
    for number in range(order["count"]):
        time.sleep(max(0.0, began + number / order["per_second"] - time.monotonic()))
        handle.pwrite(data, number * order["stride"])
    return {"ended_at": time.time()}


def scattered(handle, order):
    """Keep `depth` writes in flight until the time is over."""
    rng = random.Random(order["seed"])
    began, written, flying = time.monotonic(), 0, set()
    while time.monotonic() < began + order["seconds"]:
        time.sleep(max(0.0, began + written / order["per_second"] - time.monotonic()))
        while len(flying) >= order["depth"]:
            handle.poll(-1)
            flying -= {cookie for cookie in flying if handle.aio_command_completed(cookie)}
        buffer = nbd.Buffer.from_bytearray(bytearray(rng.randbytes(order["length"])))
        flying.add(handle.aio_pwrite(buffer, rng.randrange(0, order["size"] - order["length"])))
        written += 1
    while flying:
        handle.poll(-1)
        flying -= {cookie for cookie in flying if handle.aio_command_completed(cookie)}
    return {"written": written}


def chains(first, order):
    """Every chain has one request in flight, on one of the disks, until the time is over."""
    handles = [first]
    for uri in order["others"]:
        handles.append(nbd.NBD())
        handles[-1].connect_uri(uri)
    flying = [{} for _ in handles]
    answered = [0] * order["chains"]

    def send(chain):
        number = answered[chain] + 1
        disk = (number - 1) % len(handles)
        buffer = nbd.Buffer.from_bytearray(bytearray(number.to_bytes(8, "little") * (SECTOR // 8)))
        cookie = handles[disk].aio_pwrite(buffer, (order["sector"] + 8 * chain) * SECTOR)
        flying[disk][cookie] = chain, buffer

    for chain in range(order["chains"]):
        send(chain)
    end = time.monotonic() + order["seconds"]
    while any(flying):
        time.sleep(order.get("pause", 0))
        if order.get("until") and pathlib.Path(order["until"]).exists():
            end = 0
        wait(handles)
        for disk, handle in enumerate(handles):
            for cookie in [c for c in flying[disk] if handle.aio_command_completed(c)]:
                chain, _ = flying[disk].pop(cookie)
                answered[chain] += 1
                if time.monotonic() < end:
                    send(chain)
    for handle in handles[1:]:
        handle.shutdown()
    return {"answered": answered}


def wait(handles):
    """Let all connections move once."""
    poller = select.poll()
    for handle in handles:
        writing = handle.aio_get_direction() & nbd.AIO_DIRECTION_WRITE
        poller.register(handle.aio_get_fd(), select.POLLIN | (select.POLLOUT if writing else 0))
    ready = dict(poller.poll())
    for handle in handles:
        happened = ready.get(handle.aio_get_fd(), 0)
        if happened & (select.POLLIN | select.POLLHUP | select.POLLERR):
            handle.aio_notify_read()
        elif happened & select.POLLOUT:
            handle.aio_notify_write()


def execute(handle, order):
    """One order, one answer."""
    start, length = order.get("start"), order.get("length")
    match order["op"]:
        case "write":
            handle.pwrite(random.Random(order["seed"]).randbytes(length), start)
        case "zero":
            handle.zero(length, start)
        case "trim":
            handle.trim(length, start)
        case "flush":
            handle.flush()
        case "read":
            return {"hex": handle.pread(length, start).hex()}
        case "numbered":
            return numbered(handle, order)
        case "strided":
            return strided(handle, order)
        case "scattered":
            return scattered(handle, order)
        case "chains":
            return chains(handle, order)
    return {}


def main():
    """Serve orders until standard input ends."""
    handle = nbd.NBD()
    # An odd start or length is the server's to handle; libnbd would refuse it by itself.
    handle.set_strict_mode(handle.get_strict_mode() & ~nbd.STRICT_ALIGN)
    handle.connect_uri(sys.argv[1])
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = execute(handle, order)
        except nbd.Error as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
