"""Checkpoints and restores of real GPU containers: python3 run.py [CASE…], on a GPU host, as root.

Runs where pack.sh's archive was unpacked, with a containerd of its own whose state lies in
/tmp/kybernate-gpu. Prints a line of JSON for every result and a table at the end. Stock means
containerd's own CheckpointContainer with its own shim, and the driver's calls by hand around it.
"""

import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
STATE = "/tmp/kybernate-gpu"
SOCKET = f"{STATE}/run/containerd.sock"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
IMAGE = "kybernate.test/tools:1"
os.environ["PATH"] = f"{HERE}/bin:" + os.environ["PATH"]
os.environ["KYBERNATE_CONFIG"] = f"{STATE}/config.toml"
os.environ["KYBERNATE_CONTAINERD_SOCKET"] = SOCKET
RESULTS = []


def note(case, **facts):
    RESULTS.append({"case": case, **facts})
    print(json.dumps(RESULTS[-1]), flush=True)


def run(*argv, check=True, timeout=300):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout.strip() if check else done


def settings(text=""):
    with open(f"{STATE}/config.toml", "w") as file:
        file.write(text)


def thp():
    return re.search(r"\[(\w+)\]", open(THP).read())[1]


def start_containerd():
    global CRI
    from cri import Cri

    shutil.rmtree(STATE, ignore_errors=True)
    os.makedirs(f"{STATE}/out")
    settings()
    for library in os.listdir(f"{HERE}/lib"):
        target = f"/usr/lib/x86_64-linux-gnu/{library}"
        if not os.path.exists(target):
            shutil.copy(f"{HERE}/lib/{library}", target)
    run("ldconfig")
    os.makedirs("/etc/criu", exist_ok=True)
    # There is no iptables here; what locks the network for stock's dumps.
    for name in ("runc.conf", "default.conf"):
        with open(f"/etc/criu/{name}", "w") as file:
            file.write("network-lock skip\n")
    with open(f"{STATE}/containerd.toml", "w") as file:
        file.write(f"""version = 3
root = '{STATE}/root'
state = '{STATE}/state'
disabled_plugins = ['io.containerd.nri.v1.nri']
[grpc]
address = '{SOCKET}'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = 'kybernate.test/pause:1'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kybernate]
runtime_type = 'io.containerd.runc.v2'
runtime_path = '{HERE}/bin/containerd-shim-kybernate-v1'
container_annotations = ['kybernate.io/*']
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kybernate-nvidia]
runtime_type = 'io.containerd.runc.v2'
runtime_path = '{HERE}/bin/containerd-shim-kybernate-v1'
container_annotations = ['kybernate.io/*']
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kybernate-nvidia.options]
BinaryName = '{HERE}/bin/nvidia-container-runtime'
""")
    # Where NVIDIA's runtime looks for its own settings.
    os.makedirs(f"{STATE}/nvidia-container-runtime")
    with open(f"{STATE}/nvidia-container-runtime/config.toml", "w") as file:
        file.write(f"""[nvidia-container-runtime]
debug = '{STATE}/nvidia-container-runtime.log'
runtimes = ['runc']
mode = 'auto'
[nvidia-ctk]
path = '{HERE}/bin/nvidia-ctk'
""")
    daemon = start_daemon()
    for image in ("pause", "tools"):
        run("ctr", "--address", SOCKET, "-n", "k8s.io", "images", "import", f"{HERE}/images/{image}.tar")
    CRI = Cri(SOCKET)
    return daemon


def start_daemon():
    log = open(f"{STATE}/containerd.log", "a")
    environment = {**os.environ, "XDG_CONFIG_HOME": STATE}
    daemon = subprocess.Popen(["containerd", "--config", f"{STATE}/containerd.toml"], stdout=log, stderr=log, env=environment)
    for _ in range(100):
        if run("ctr", "--address", SOCKET, "version", check=False).returncode == 0:
            return daemon
        time.sleep(0.1)
    raise RuntimeError("containerd does not answer")


def restart_daemon():
    global DAEMON
    DAEMON.wait()
    DAEMON = start_daemon()


PODS = 0


class Container:
    """A container in a pod of its own."""

    def __init__(self, handler, argv, annotations=None, devices=None, memory=0, environment=None):
        global PODS
        PODS += 1
        self.name = f"gpu-{PODS}"
        self.pod = CRI.pod(self.name, handler)
        self.log = f"/var/log/pods/{self.name}/app.log"
        venv = os.path.dirname(sys.prefix)
        paths = ["/usr/bin", "/usr/lib", "/lib64", "/usr/local/nvidia", venv]
        if handler == "kybernate-nvidia":
            # It brings driver and devices itself.
            paths.remove("/usr/local/nvidia")
            devices = []
            environment = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
        mounts = [(path, path) for path in paths if os.path.exists(path)]
        # The image is not merged: the loader's link leads to /lib.
        mounts += [("/usr/lib", "/lib"), (HERE, "/workloads")]
        if devices is None:
            devices = sorted(glob.glob("/dev/nvidia[0-9]*")) + ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]
        environment = {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib64:/usr/lib/x86_64-linux-gnu", "PATH": "/usr/bin:/bin", "HOME": "/tmp", **(environment or {})}
        self.id = CRI.container(
            self.pod, "app", IMAGE, [sys.executable, "/workloads/workloads.py", *map(str, argv)],
            environment, mounts, devices, annotations or {}, memory,
        )

    def lines(self):
        try:
            return [line.split(" ", 3)[3].strip() for line in open(self.log)]
        except OSError:
            return []

    def count(self):
        for line in reversed(self.lines()):
            if line.startswith("count "):
                return int(line.split()[1])
        return 0

    def first(self):
        return next(int(line.split()[1]) for line in self.lines() if line.startswith("count "))

    def counts_beyond(self, number, limit=120):
        """Waits until it counts; fails when it says FAIL or stands still."""
        until, look = time.time() + limit, time.time() + 2
        while time.time() < until:
            wrong = [line for line in self.lines() if "FAIL" in line or "Error" in line]
            if wrong:
                raise RuntimeError(f"the workload says {wrong[:3]}; {self.lines()[-5:]}")
            if self.count() > number:
                return self.count()
            if time.time() > look:
                look = time.time() + 2
                if not self.pids():
                    raise RuntimeError(f"the workload has ended: {self.lines()[-5:]}")
            time.sleep(0.01)
        raise RuntimeError(f"no count beyond {number} within {limit} s: {self.lines()[-5:]}")

    def pids(self):
        out = run("ctr", "--address", SOCKET, "-n", "k8s.io", "tasks", "ps", self.id, check=False).stdout
        return [int(line.split()[0]) for line in out.splitlines()[1:] if line[0].isdigit()]

    def states(self):
        return [run("kybernate-cuda", "--get-state", "--pid", str(pid)) for pid in self.pids()]

    def checkpoint(self, path, *arguments, check=True):
        if os.path.exists(path):
            os.remove(path)
        begun = time.time()
        done = run("kybernate", "checkpoint", self.id, "-o", path, *arguments, check=False)
        took = time.time() - begun
        if check and done.returncode:
            raise RuntimeError(done.stdout[-3000:])
        return took, done

    def remove(self):
        CRI.remove_pod(self.pod)


def manifest(path):
    return json.loads(run("kybernate", "inspect", "--json", path))["manifest"]


def phases(path):
    return {phase["name"]: phase["ms"] for phase in manifest(path)["phases"]}


def restore(path, argv, handler="kybernate", **how):
    """Restores into a new pod. Returns the container and the seconds to its next step."""
    begun = time.time()
    container = Container(handler, argv, {"kybernate.io/restore-from": path}, **how)
    created = time.time() - begun
    container.counts_beyond(0)
    return container, created, time.time() - begun


def case_stock(mib=4096):
    """Stock's total for the same workload."""
    container = Container("runc", ["memory", mib])
    before = container.counts_beyond(3)
    pid = container.pids()[0]
    begun = time.time()
    run("kybernate-cuda", "--action", "lock", "--pid", str(pid), "--timeout", "10000")
    run("kybernate-cuda", "--action", "checkpoint", "--pid", str(pid))
    gpu = time.time() - begun
    location = f"{STATE}/out/stock.tar"
    CRI.checkpoint(container.id, location)
    dump = time.time() - begun - gpu
    run("kybernate-cuda", "--action", "restore", "--pid", str(pid))
    run("kybernate-cuda", "--action", "unlock", "--pid", str(pid))
    total = time.time() - begun
    container.counts_beyond(before)
    note("stock", mib=mib, total_s=round(total, 2), gpu_checkpoint_s=round(gpu, 2), cri_s=round(dump, 2),
         archive_mib=os.path.getsize(location) >> 20, thp=thp())
    container.remove()
    os.remove(location)


def case_sizes(sizes=(64, 4096, 16384)):
    """Leave-running checkpoints by size and level, then the restore of the last one."""
    for mib in sizes:
        container = Container("kybernate", ["memory", mib])
        before = container.counts_beyond(3)
        path = f"{STATE}/out/size.tar.zst"
        for level in ("default", "fast") if mib == 4096 else ("default",):
            used = run("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader")
            took, _ = container.checkpoint(path, "--level", level)
            facts = manifest(path)
            after = container.counts_beyond(container.count())
            note("checkpoint", mib=mib, level=level, total_s=round(took, 2), pause_ms=facts["pause_ms"],
                 archive_mib=os.path.getsize(path) >> 20, content_mib=sum(e["size"] for e in facts["entries"]) >> 20,
                 phases=phases(path), before=before, after=after, states=container.states(), gpu_memory=used, thp_after=thp())
            # The second finds warm memory.
        verified = run("kybernate", "verify", path)
        container.remove()
        restored, created, took = restore(path, ["memory", mib])
        note("restore", mib=mib, created_s=round(created, 2), next_step_s=round(took, 2), first=restored.first(),
             states=restored.states(), verified=verified[-60:])
        spec = json.load(open(f"{STATE}/state/io.containerd.runtime.v2.task/k8s.io/{restored.id}/config.json"))
        # Its pod stays, whose namespaces the specification names.
        CRI.remove_container(restored.id)
        if mib == 4096:
            bare(path, spec)
        restored.remove()
        os.remove(path)


def bare(path, own):
    """runc restore and the driver's restore alone, of the same images, in memory."""
    for mode in ("madvise", "always"):
        images, bundle, name = "/dev/shm/kybernate-bare/images", "/dev/shm/kybernate-bare/bundle", f"bare-{mode}"
        shutil.rmtree("/dev/shm/kybernate-bare", ignore_errors=True)
        os.makedirs(bundle + "/rootfs")
        run("kybernate", "extract", path, "/dev/shm/kybernate-bare/all")
        os.rename("/dev/shm/kybernate-bare/all/checkpoint", images)
        spec = {**own, "root": {"path": "rootfs"}}
        spec["linux"]["cgroupsPath"] = f"/kybernate-bare/{name}"
        spec["annotations"]["org.criu.config"] = f"{bundle}/criu.conf"
        with open(f"{bundle}/criu.conf", "w") as file:
            file.write("tcp-close\nghost-limit 1073741824\nenable-external-masters\nnetwork-lock skip\n")
        json.dump(spec, open(f"{bundle}/config.json", "w"))
        run("ctr", "--address", SOCKET, "-n", "k8s.io", "images", "mount", "--rw", IMAGE, f"{bundle}/rootfs")
        was = thp()
        open(THP, "w").write(mode)
        try:
            begun = time.time()
            done = subprocess.run(["runc", "restore", "--detach", "--no-subreaper", "--file-locks", "--ext-unix-sk", "--image-path", images,
                                   "--work-path", bundle + "/work", "--bundle", bundle, "--pid-file", bundle + "/pid", name],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(bundle + "/errors", "w"))
            if done.returncode:
                log = bundle + "/work/restore.log"
                log = open(log).read()[-1500:] if os.path.exists(log) else ""
                raise RuntimeError("bare runc restore: " + open(bundle + "/errors").read()[-1500:] + log)
            processes = time.time() - begun
            pid = open(bundle + "/pid").read().strip()
            run("kybernate-cuda", "--action", "restore", "--pid", pid)
            run("kybernate-cuda", "--action", "unlock", "--pid", pid)
            note("bare restore", thp=mode, runc_s=round(processes, 2), gpu_s=round(time.time() - begun - processes, 2),
                 total_s=round(time.time() - begun, 2))
        finally:
            open(THP, "w").write(was)
            run("runc", "delete", "-f", name, check=False)
            run("umount", "-l", f"{bundle}/rootfs", check=False)
            run("ctr", "--address", SOCKET, "-n", "k8s.io", "snapshots", "rm", f"{bundle}/rootfs", check=False)
            shutil.rmtree("/dev/shm/kybernate-bare", ignore_errors=True)


def rounds(case, argv, count=3, handler="kybernate"):
    """Checkpoint, kill, restore, several times in a row."""
    container = Container(handler, argv)
    container.counts_beyond(5, 240)
    path, history = f"{STATE}/out/rounds.tar.zst", []
    for _ in range(count):
        took, _ = container.checkpoint(path, "--exit")
        at = container.count()
        lines = container.lines()
        container.remove()
        container, _, back = restore(path, argv, handler)
        first = container.first()
        assert at <= first <= at + 30, f"at {at}, restored at {first}"
        container.counts_beyond(first + 3)
        history.append({"at": at, "first": first, "checkpoint_s": round(took, 2), "restore_s": round(back, 2)})
    facts = manifest(path)
    note(case, rounds=history, gpus=len(facts["gpu"]["devices"]), states=container.states(), processes=len(facts["gpu"]["processes"]),
         archive_mib=os.path.getsize(path) >> 20, pause_ms=facts["pause_ms"])
    container.remove()
    return lines


def case_rounds():
    rounds("three rounds, 4 GiB", ["memory", 4096])


def case_two_processes():
    rounds("two processes on one GPU", ["memory", 1024, 2])


def case_inference():
    rounds("PyTorch inference, 4 GiB model", ["inference", 4096], 1)


def case_training(steps=160):
    """Losses after two restores against those of an uninterrupted run."""
    whole = Container("kybernate", ["training", steps])
    whole.counts_beyond(steps - 1, 240)
    expected = {int(line.split()[1]): line.split()[2] for line in whole.lines() if line.startswith("count ")}
    whole.remove()
    container = Container("kybernate", ["training", steps])
    container.counts_beyond(20, 240)
    path, seen, cuts = f"{STATE}/out/training.tar.zst", {}, []
    for _ in range(2):
        took, _ = container.checkpoint(path, "--exit")
        seen |= {int(line.split()[1]): line.split()[2] for line in container.lines() if line.startswith("count ")}
        container.remove()
        cuts.append(max(seen))
        container, _, _ = restore(path, ["training", steps])
        container.counts_beyond(container.first() + 20)
    container.counts_beyond(steps - 1)
    seen |= {int(line.split()[1]): line.split()[2] for line in container.lines() if line.startswith("count ")}
    different = [step for step in expected if seen.get(step) != expected[step]]
    note("PyTorch training", steps=steps, interrupted_at=cuts, different=different[:5], last_loss=float.fromhex(expected[steps]),
         archive_mib=os.path.getsize(path) >> 20, checkpoint_s=round(took, 2), phases=phases(path))
    assert not different
    container.remove()


def refused(case, container, message, before, since):
    after = container.counts_beyond(container.count())
    note(case, message=message.strip().replace("\n", " ")[-420:], before=before, after=after, seconds=round(time.time() - since, 2),
         states=container.states(), thp=thp(), helpers=run("pgrep", "-c", "kybernate-cuda", check=False).stdout.strip())


def case_faults():
    """What goes wrong leaves the workload on the GPU, with a clear error."""
    container = Container("kybernate", ["memory", 4096])
    before = container.counts_beyond(3)
    path = f"{STATE}/out/fault.tar.zst"

    settings('[gpu]\nlibcuda = "/nonexistent/libcuda.so.1"\n')
    since = time.time()
    took, done = container.checkpoint(path, check=False)
    assert done.returncode
    settings()
    refused("no libcuda", container, done.stdout, before, since)

    def while_it_runs(case, program, delay, sign=signal.SIGKILL, arguments=(), after=lambda: None):
        before = container.count()
        if os.path.exists(path):
            os.remove(path)
        client = subprocess.Popen(["kybernate", "checkpoint", container.id, "-o", path, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        until = time.time() + 20
        while time.time() < until:
            found = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and name(pid) == program]
            if found:
                break
            time.sleep(0.01)
        time.sleep(delay)
        since = time.time()
        for pid in found:
            try:
                os.kill(pid, sign)
            except ProcessLookupError:
                pass
        message = client.communicate(timeout=120)[0]
        after()
        refused(f"{case} (exit {client.returncode})", container, message, before, since)

    while_it_runs("CRIU killed", "criu", 0.5)
    while_it_runs("CRIU stopped", "criu", 0.5, signal.SIGSTOP, ("--timeout", "5"))
    while_it_runs("runc killed", "runc", 0.5)
    while_it_runs("containerd killed", "containerd", 2.5, after=restart_daemon)
    while_it_runs("helper killed while it checkpoints", "kybernate-cuda", 0.7)
    before, since = container.count(), time.time()
    _, done = container.checkpoint(path, "--timeout", "1", check=False)
    assert done.returncode
    refused("deadline of 1 s", container, done.stdout, before, since)
    small = f"{STATE}/small"
    os.makedirs(small)
    run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", small)
    before, since = container.count(), time.time()
    _, done = container.checkpoint(f"{small}/x.tar.zst", check=False)
    refused(f"disk full (exit {done.returncode}; left {os.listdir(small)})", container, done.stdout, before, since)
    run("umount", small)
    took, _ = container.checkpoint(path)
    note("after all faults", total_s=round(took, 2), states=container.states())
    container.remove()
    restore_faults(path)

    container = Container("kybernate", ["managed", 64])
    before, since = container.counts_beyond(3), time.time()
    _, done = container.checkpoint(path, check=False)
    refused(f"managed memory (exit {done.returncode})", container, done.stdout, before, since)
    container.remove()

    # A limit that the copy of the device memory does not fit below.
    container = Container("kybernate", ["memory", 2048], memory=1536 << 20)
    before = container.counts_beyond(3)
    took, _ = container.checkpoint(path)
    limit = open(glob.glob(f"/sys/fs/cgroup/kubepods/{container.name}/*{container.id}*/memory.max")[0]).read().strip()
    note("memory limit raised and put back", limit_mib=int(limit) >> 20, before=before, after=container.counts_beyond(container.count()))
    container.remove()


def restore_faults(path):
    """A restore that fails leaves no process on the GPU and an archive that can be restored."""
    for program in ("criu", "runc", "kybernate-cuda"):
        ended = {}

        def attempt():
            try:
                ended["container"], _, _ = restore(path, ["memory", 4096])
            except Exception as error:
                ended["error"] = str(error)

        thread = threading.Thread(target=attempt)
        thread.start()
        # The CRIU that restores, not the one that was asked for its version.
        until = time.time() + 30
        while time.time() < until and not glob.glob("/run/kybernate/restore/*/work/restore.log"):
            time.sleep(0.002)
        time.sleep(0.1)
        for pid in [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and name(pid) == program]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        thread.join()
        if "container" in ended:
            ended["container"].remove()
        else:
            CRI.remove_pod(CRI.last)
        on_gpu = run("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader")
        note(f"restore, {program} killed", restored="container" in ended, on_gpu_after=on_gpu, left=os.listdir("/run/kybernate/restore"),
             thp=thp(), message=ended.get("error", "").replace("\n", " ")[:420])
        assert not on_gpu
    container, _, took = restore(path, ["memory", 4096])
    note("restore after all faults", next_step_s=round(took, 2), states=container.states())
    container.remove()


def case_shim_killed():
    """kill -9 of the shim in the middle of a dump, while containerd does not get to run.

    The workload counts in a file: who prints when its shim has died gets SIGPIPE.
    """
    container = Container("kybernate", ["memory", 4096], environment={"COUNT_FILE": "/tmp/count"})
    pid = container.pids()[0]

    def count():
        try:
            return int(open(f"/proc/{pid}/root/tmp/count").read().split("count ")[-1].split()[0])
        except (OSError, ValueError, IndexError):
            return 0

    def wait(what, limit, holds):
        begun = time.time()
        while not holds():
            if time.time() - begun > limit:
                raise RuntimeError(f"{what}: not within {limit} s")
            time.sleep(0.02)
        return time.time() - begun

    wait("counts", 120, lambda: count() > 3)
    path = f"{STATE}/out/killed.tar.zst"
    client = subprocess.Popen(["kybernate", "checkpoint", container.id, "-o", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait("CRIU", 20, lambda: any(name(other) == "criu" for other in os.listdir("/proc") if other.isdigit()))
    time.sleep(0.5)
    before = count()
    status = lambda field: re.search(rf"^{field}:\s*(\S+)", open(f"/proc/{pid}/status").read(), re.M)[1]
    shim = int(status("PPid"))
    DAEMON.send_signal(signal.SIGSTOP)
    try:
        os.kill(shim, signal.SIGKILL)
        took = wait("goes on", 30, lambda: count() > before + 1)
        state = run("kybernate-cuda", "--get-state", "--pid", str(pid))
        freezer = glob.glob(f"/sys/fs/cgroup/kubepods/{container.name}/*{container.id}*/cgroup.freeze")[0]
        note("shim killed in the middle of a dump", before=before, after=count(), seconds=round(took, 2), state=state,
             tracer=status("TracerPid"), frozen=open(freezer).read().strip(), thp=thp(), published=os.path.exists(path))
        assert took < 10 and state == "running"
        # The helper that resumed it, or the guardian: they end when that is done.
        for program in ("kybernate-cuda", "kybernate-guardian"):
            wait(f"an end of {program}", 10, lambda: run("pgrep", "-f", rf"^(\S*/)?{program}( |$)", check=False).returncode == 1)
    finally:
        DAEMON.send_signal(signal.SIGCONT)
        client.communicate(timeout=60)
    # containerd ends a container that has lost its shim, and takes a while to notice.
    wait("its end", 20, lambda: not os.path.exists(f"/proc/{pid}"))
    for _ in range(20):
        try:
            return container.remove()
        except Exception as error:
            left = error
            time.sleep(0.5)
    raise left


def name(pid):
    try:
        return open(f"/proc/{pid}/comm").read().strip()
    except OSError:
        return ""


def case_other_gpu():
    """Two GPUs: from the first onto the second, and both in one container."""
    common = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]
    argv = ["memory", 1024]
    container = Container("kybernate", argv, devices=["/dev/nvidia0", *common])
    container.counts_beyond(5)
    path = f"{STATE}/out/other.tar.zst"
    container.checkpoint(path, "--exit")
    at = container.count()
    container.remove()
    container, _, back = restore(path, argv, devices=["/dev/nvidia1", *common])
    first = container.first()
    container.counts_beyond(first + 5)
    used = run("nvidia-smi", "--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader")
    note("onto another GPU", at=at, first=first, restore_s=round(back, 2), now_on=used, was_on=manifest(path)["gpu"]["devices"][0]["uuid"])
    again, _ = container.checkpoint(path)
    note("checkpoint there", total_s=round(again, 2), on=manifest(path)["gpu"]["devices"][0]["uuid"])
    container.remove()
    rounds("two GPUs in one container", ["memory", 1024, 2, 2], 1)


def case_toolkit():
    """NVIDIA's container toolkit gives the GPU: its runtime as BinaryName, its hooks."""
    if not os.path.exists(f"{HERE}/bin/nvidia-container-runtime"):
        note("SKIPPED toolkit", why="pack.sh was given no programs of NVIDIA's container toolkit")
        return
    container = Container("kybernate-nvidia", ["memory", 1024])
    container.counts_beyond(3)
    spec = json.load(open(f"{STATE}/state/io.containerd.runtime.v2.task/k8s.io/{container.id}/config.json"))
    table = open(f"/proc/{container.pids()[0]}/mountinfo").read().splitlines()
    driver = [mount["destination"] for mount in spec["mounts"] if "nvidia" in mount["destination"] or "cuda" in mount["destination"]]
    hooks = [" ".join(hook["args"][:3]) for kind in spec["hooks"].values() for hook in kind or []]
    made = [line.split()[4] for line in table if "nvidia" in line.split()[4] and line.split()[4] not in driver]
    note("NVIDIA container toolkit", version=run(f"{HERE}/bin/nvidia-ctk", "--version").splitlines()[0], mounts_of_driver=len(driver), hooks=hooks, mounts_of_hooks=made)
    container.remove()
    rounds("three rounds with nvidia-container-runtime", ["memory", 1024], 3, "kybernate-nvidia")
    path = f"{STATE}/out/rounds.tar.zst"
    note("its archive", injected=[mount["destination"] for mount in manifest(path)["mounts"] if mount.get("injected")])


def case_hook(rounds=6):
    """What kybernate-cri-hooks adds to calls, on a node with many cores: no GPU takes part."""
    pod = CRI.pod("hook", "kybernate")
    for number in range(10):
        CRI.container(pod, f"c{number}", IMAGE, ["counter"], {}, [], [], {}, 0)
    hook = start_hook()
    try:
        print(run("kybernate-bench-hooks", str(rounds), "0", SOCKET, f"{STATE}/hook.sock"), flush=True)
    finally:
        hook.kill()
        hook.wait()
    CRI.remove_pod(pod)


def start_hook():
    environment = {**os.environ, "KYBERNATE_HOOKS_SOCKET": f"{STATE}/hook.sock", "KYBERNATE_HOOKS_METRICS": ""}
    hook = subprocess.Popen(["kybernate-cri-hooks"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(100):
        if os.path.exists(f"{STATE}/hook.sock"):
            return hook
        time.sleep(0.05)
    raise RuntimeError("kybernate-cri-hooks does not serve")


def table():
    print("\n| case | facts |\n|---|---|")
    for result in RESULTS:
        facts = ", ".join(f"{key} {value}" for key, value in result.items() if key != "case")
        print(f"| {result['case']} | {facts} |")


def main():
    sys.path.insert(0, HERE)
    names = sys.argv[1:] or ["stock", "sizes", "rounds", "two_processes", "training", "inference", "faults", "shim_killed", "toolkit"]
    print(run("nvidia-smi", "-L"), run("uname", "-r"), thp(), os.cpu_count(), "cores", flush=True)
    global DAEMON
    DAEMON = start_containerd()
    failed = []
    try:
        for case in names:
            begun = time.time()
            try:
                globals()[f"case_{case}"]()
            except Exception as error:
                failed.append(case)
                note(f"FAILED {case}", error=str(error)[-3000:])
                traceback.print_exc(limit=4)
            print(f"# {case} took {time.time() - begun:.1f} s", flush=True)
    finally:
        table()
        if failed:
            log = open(f"{STATE}/containerd.log").read().splitlines()
            print("\n".join(line[:600] for line in log if "WARN" in line or "ERROR" in line or "level=error" in line)[-4000:])
        DAEMON.terminate()
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
