#!/usr/bin/env python3
"""What limits long MLA rows on a GPU: clock, power, and why the clock is low, beside the speed of runs.

    python3 bench/mla_power.py --library build/libattn.so [--keys 16384,32768] [--seconds 1.5]

128 ragged sequences, 128 heads, 2 queries, pages of 64, bf16. Three times each: two series as triton's
do_bench makes them (125 ms of runs behind a flush of L2, after a rest of 0.8 s), then without a pause. Beside
them a product of cuBLAS without a pause: what tensor cores do at the same power. Needs PyTorch and NVML.
"""
import argparse
import ctypes
import os
import pathlib
import sys
import threading
import time

HEADS, BATCH, Q_LEN, PAGE, QK, V = 128, 128, 2, 64, 576, 512
POWER_INSTANT = 186                 # NVML_FI_DEV_POWER_INSTANT
REASONS = {1: "idle", 4: "power cap", 8: "hardware slowdown", 32: "thermal", 64: "hardware thermal",
           128: "power brake"}


class Field(ctypes.Structure):      # nvmlFieldValue_t
    _fields_ = [("id", ctypes.c_uint), ("scope", ctypes.c_uint), ("time", ctypes.c_longlong),
                ("latency", ctypes.c_longlong), ("type", ctypes.c_uint), ("status", ctypes.c_uint),
                ("value", ctypes.c_uint), ("rest", ctypes.c_uint)]


class Card:
    """The first GPU as NVML sees it."""

    def __init__(self):
        self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self.nvml.nvmlInit_v2()
        self.device = ctypes.c_void_p()
        if self.nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self.device)):
            sys.exit("mla_power: NVML finds no GPU")

    def sample(self):
        """Seconds, SM clock in MHz, watts, bits of the reasons for a lower clock."""
        clock, reasons, power = ctypes.c_uint(), ctypes.c_ulonglong(), Field(POWER_INSTANT, 0)
        self.nvml.nvmlDeviceGetClockInfo(self.device, 1, ctypes.byref(clock))
        self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.device, ctypes.byref(reasons))
        self.nvml.nvmlDeviceGetFieldValues(self.device, 1, ctypes.byref(power))
        return time.perf_counter(), clock.value, power.value / 1000, reasons.value

    def joules(self):
        energy = ctypes.c_ulonglong()
        self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.device, ctypes.byref(energy))
        return energy.value / 1000


def reasons_of(bits):
    return " + ".join(name for bit, name in REASONS.items() if bits & bit) or "-"


def watched(card, torch, text, work):
    """Print what `work` returns, and the card's state meanwhile."""
    log, going = [], True

    def watch():
        while going:
            log.append(card.sample())
            time.sleep(0.004)

    thread, begin = threading.Thread(target=watch), time.perf_counter()
    thread.start()
    result = work()
    torch.cuda.synchronize()
    going = False
    thread.join()
    print(f"{text}: {result}")
    shown = log[::max(1, len(log) // 16)]
    print("    ms  " + " ".join(f"{1e3 * (s[0] - begin):5.0f}" for s in shown))
    print("    MHz " + " ".join(f"{s[1]:5d}" for s in shown))
    print("    W   " + " ".join(f"{s[2]:5.0f}" for s in shown))
    bits = 0
    for s in log:
        bits |= s[3]
    print(f"    lower clock because of: {reasons_of(bits & ~1)}", flush=True)


def make_cache(torch, mean):
    """Ragged lengths, a shuffled block table, K: random normal numbers."""
    g = torch.Generator().manual_seed(1)
    lengths = (mean * (1 + 0.5 * torch.randn(BATCH, generator=g))).clamp(min=Q_LEN).int()
    pages = (lengths + PAGE - 1) // PAGE
    total, columns = int(pages.sum()), int(pages.max())
    order = torch.randperm(total, generator=g).int()
    table, at = torch.zeros(BATCH, columns, dtype=torch.int32), 0
    for b in range(BATCH):
        table[b, :pages[b]] = order[at:at + int(pages[b])]
        at += int(pages[b])
    k = torch.empty(total, PAGE, 1, QK, dtype=torch.bfloat16, device="cuda")
    for i in range(0, total, 4096):
        k[i:i + 4096] = torch.randn(k[i:i + 4096].shape, device="cuda").bfloat16()
    return lengths.cuda(), table.cuda(), k, float(lengths.double().mean())


def series(torch, run, flush, flop):
    """As do_bench: runs behind a flush, queued together."""
    count = max(7, round(125e-3 * 600e12 / flop))
    events = [(torch.cuda.Event(True), torch.cuda.Event(True)) for _ in range(count)]
    for begin, end in events:
        flush.zero_()
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    speed = [flop / begin.elapsed_time(end) / 1e9 for begin, end in events]
    return (f"median {sorted(speed)[count // 2]:.0f} TFLOP/s; in order " +
            " ".join(f"{x:.0f}" for x in speed[::max(1, count // 12)]))


def sustained(torch, card, run, flop, seconds, batch):
    begin, joules, count = time.perf_counter(), card.joules(), 0
    while time.perf_counter() - begin < seconds:
        for _ in range(batch):
            run()
        torch.cuda.synchronize()
        count += batch
    took, joules = time.perf_counter() - begin, card.joules() - joules
    flops = flop * count
    return f"{flops / took / 1e12:.0f} TFLOP/s, {joules / took:.0f} W, {joules / flops * 1e12:.2f} pJ/flop"


def mla(torch, attn, card, mean, seconds):
    lengths, table, k, mean_keys = make_cache(torch, mean)
    q = torch.randn(BATCH, Q_LEN, HEADS, QK, device="cuda").bfloat16()
    flush, schedule = torch.empty(64 << 20, dtype=torch.int32, device="cuda"), attn.Schedule()
    flop = 2 * BATCH * HEADS * Q_LEN * mean_keys * (QK + V)

    def run():
        attn.attention(q, k, v_dim=V, causal=True, seqused_kv=lengths, block_table=table,
                       max_kv_len=table.shape[1] * PAGE, schedule=schedule, kernel="mla_decode_sm90")

    run()
    for text in ("series", "series again"):
        torch.cuda.synchronize()
        time.sleep(0.8)
        watched(card, torch, f"{mean} keys, {text}", lambda: series(torch, run, flush, flop))
    watched(card, torch, f"{mean} keys, no pause", lambda: sustained(torch, card, run, flop, seconds, 20))


def product(torch, card, seconds):
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    torch.cuda.synchronize()
    time.sleep(0.8)
    watched(card, torch, "cuBLAS 8192^3, no pause",
            lambda: sustained(torch, card, lambda: torch.mm(a, b, out=out), 2 * 8192**3, seconds, 50))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", help="libattn.so (ATTN_LIBRARY, or where the package looks)")
    parser.add_argument("--keys", default="16384,32768", help="mean keys of a sequence (16384,32768)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of the runs without a pause (1.5)")
    a = parser.parse_args()
    if a.library:
        os.environ["ATTN_LIBRARY"] = a.library
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "python"))
    import torch
    import attn
    if not torch.cuda.is_available():
        sys.exit("mla_power: no GPU here")
    card = Card()
    print(f"{torch.cuda.get_device_name()}, bf16, {BATCH} ragged sequences, {HEADS} heads, {Q_LEN} queries")
    for mean in a.keys.split(","):
        mla(torch, attn, card, int(mean), a.seconds)
    product(torch, card, a.seconds)


if __name__ == "__main__":
    main()
