"""Programs that use a GPU, for checkpoints of them: python3 workloads.py NAME [ARGUMENTS].

Each prints "count N …" for every step, to the file COUNT_FILE if that is set. N and what follows come from GPU memory, so a line tells
whether its state survived. FAIL says what did not.
"""

import ctypes
import hashlib
import os
import sys
import time
import zlib


def memory(mib, processes=1, gpus=1):
    """CUDA driver API: MiB of device memory, half random and half of one pattern, and a counter.

    Of several processes, which take the GPUs in turn, the first one prints. Every step adds one to the counter on the GPU and checks one window of the memory.
    """
    number = 0
    for other in range(1, processes):
        if os.fork() == 0:
            number = other
            sys.stdout = open(os.devnull, "w")
            break
    cuda = ctypes.CDLL("libcuda.so.1")

    def check(result, call):
        if result:
            print(f"FAIL {call}: CUDA error {result}", flush=True)
            os._exit(3)

    device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    size, window = mib << 20, 16 << 20
    check(cuda.cuInit(0), "cuInit")
    check(cuda.cuDeviceGet(ctypes.byref(device), number % gpus), "cuDeviceGet")
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "context")
    check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    check(cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size + 8)), "cuMemAlloc")
    random, pattern = os.urandom(window), b"kybernate\n" * (window // 10) + b"kybern"
    sums = []
    for index, offset in enumerate(range(0, size, window)):
        block = pattern if index % 2 else random
        sums.append(zlib.crc32(block))
        check(cuda.cuMemcpyHtoD_v2(ctypes.c_uint64(address.value + offset), block, ctypes.c_size_t(window)), "copy")
    counter = ctypes.c_uint64(address.value + size)
    number = ctypes.c_uint64(0)
    check(cuda.cuMemcpyHtoD_v2(counter, ctypes.byref(number), ctypes.c_size_t(8)), "counter")
    back = ctypes.create_string_buffer(window)
    expected = 0
    while True:
        check(cuda.cuMemcpyDtoH_v2(ctypes.byref(number), counter, ctypes.c_size_t(8)), "read")
        number.value += 1
        expected += 1
        check(cuda.cuMemcpyHtoD_v2(counter, ctypes.byref(number), ctypes.c_size_t(8)), "write")
        index = number.value % len(sums)
        check(cuda.cuMemcpyDtoH_v2(back, ctypes.c_uint64(address.value + index * window), ctypes.c_size_t(window)), "read")
        if number.value != expected or zlib.crc32(back.raw[:window]) != sums[index]:
            print(f"FAIL count {number.value}, expected {expected}; window {index}", flush=True)
        print(f"count {number.value} {time.time():.3f}", flush=True)
        time.sleep(0.02)


def managed(mib):
    """Managed memory, which the driver can't save."""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    assert cuda.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t(mib << 20), 1) == 0
    assert cuda.cuMemsetD32_v2(address, 7, ctypes.c_size_t(mib << 18)) == 0
    number = 0
    while True:
        number += 1
        assert cuda.cuMemsetD32_v2(address, number, ctypes.c_size_t(1)) == 0
        print(f"count {number} {time.time():.3f}", flush=True)
        time.sleep(0.05)


def training(steps):
    """A PyTorch training loop with a fixed seed; prints the bits of every loss."""
    import torch

    torch.manual_seed(7)
    torch.use_deterministic_algorithms(True)
    model = torch.nn.Sequential(
        torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(4096, 1024)
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(1, steps + 1):
        data = torch.randn(512, 1024, device="cuda")
        loss = ((model(data) - data.sin()) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"count {step} {loss.item().hex()}", flush=True)
        time.sleep(0.05)


def inference(mib):
    """A PyTorch model of so many MiB that answers the same question again and again."""
    import torch

    torch.manual_seed(7)
    width = 4096
    layers = (mib << 20) // (width * width * 2)
    model = torch.nn.Sequential(*[torch.nn.Linear(width, width, bias=False) for _ in range(layers)])
    model = model.half().cuda().eval()
    question = torch.randn(8, width, device="cuda", dtype=torch.float16)
    first, number = None, 0
    with torch.inference_mode():
        while True:
            answer = hashlib.sha256(model(question).cpu().numpy().tobytes()).hexdigest()[:16]
            first = first or answer
            number += 1
            if answer != first:
                print(f"FAIL answer {answer}, expected {first}", flush=True)
            print(f"count {number} {answer}", flush=True)
            time.sleep(0.1)


if __name__ == "__main__":
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if "COUNT_FILE" in os.environ:
        sys.stdout = open(os.environ["COUNT_FILE"], "w")
    {f.__name__: f for f in (memory, managed, training, inference)}[sys.argv[1]](*map(int, sys.argv[2:]))
